-- Book how a call ended; the pure twins are circuit.step and MemoryStore.settle_now.
-- KEYS: key, window, probes, flying, tenant, tenant's flying
-- ARGV: numbers, permit
-- arg: 1 generation (-1: the present one), 2 learn (0 neutral, 1 ok, 2 failure), 3 microseconds, 4 is_slow, 5 jitter in
--      [-1, 1], 6 overloaded, 7 began_s (-1 now), 8 retry_after_s (-1 none), 9 off_in, 10 off_out, 11 requests,
--      12-14 left (-1 unknown), 15-17 resets_s, 18 failures_in_a_row, 19 window, 20 min_calls, 21 failure_rate,
--      22 slow_rate, 23 open_s, 24 open_factor, 25 open_max_s, 26 jitter share, 27 successes_to_close, 28 adapts,
--      29 factor, 30 floor, 31 not_before_max_s, 32-36 limits of the key, 37-41 of the tenant, 42 ttl_s
-- Returns: old mode, new mode, retry_after_s ('' none), reason
local state = redis.call(
  'HMGET', KEYS[1], 'b1', 'b1t', 'b2', 'b2t', 'b3', 'b3t', 'rq', 'pq', 'kept', -- a lane's
  'mode', 'gen', 'n', 'fail', 'slow', 'micros', 'row', 'rounds', 'succ', 'al', 'ap', 'ag', 'ac', 'nb'
)
local old, generation = state[10] or 'closed', tonumber(state[11]) or 0
local mode, reason, retry_after_s = old, 'recorded', ''
local permit, learn, slow = ARGV[2], ({[0] = 'neutral', 'ok', 'failure'})[arg[2]], arg[4]
local more = {}
local function set(field, value) more[#more + 1] = field; more[#more + 1] = value end
local function sum(field, value, old) if value ~= old then set(field, value) end end

local function turn(new, why)
  mode, reason = new, why
  set('mode', new); set('gen', generation + 1); set('succ', 0); set('reason', why)
  redis.call('DEL', KEYS[3])
end

local function open(why, rounds)
  local open_s = math.min(arg[25], arg[23] * arg[24] ^ math.min(rounds, 64))
  open_s = open_s * (1 + arg[26] * arg[5])
  turn('open', why)
  set('until', text(now + open_s)); set('rounds', rounds)
  retry_after_s = text(open_s)
end

local function learned()
  local calls, failed_calls, slow_calls = tonumber(state[12]) or 0, tonumber(state[13]) or 0, tonumber(state[14]) or 0
  local took_all, in_a_row = tonumber(state[15]) or 0, tonumber(state[16]) or 0
  local failed, took = learn == 'failure' and 1 or 0, arg[3]
  if redis.call('RPUSH', KEYS[2], took * 4 + slow * 2 + failed) == 1 then redis.call('EXPIRE', KEYS[2], arg[42]) end
  local n, failures, slows, micros = calls + 1, failed_calls + failed, slow_calls + slow, took_all + took
  if n > arg[19] then
    local gone = tonumber(redis.call('LPOP', KEYS[2]) or 0)
    n, failures = n - 1, failures - gone % 2
    slows, micros = slows - math.floor(gone / 2) % 2, micros - math.floor(gone / 4)
  end
  local row = failed == 1 and in_a_row + 1 or 0
  sum('n', n, calls); sum('fail', failures, failed_calls); sum('slow', slows, slow_calls); sum('micros', micros, took_all)
  sum('row', row, in_a_row)
  if failures == 0 and slows == 0 then return end
  if row >= arg[18] then
    open(string.format('%d failures in a row', row), 0)
  elseif n >= arg[20] and failures >= arg[21] * n then
    open(string.format('%d of the last %d calls failed', failures, n), 0)
  elseif n >= arg[20] and slows >= arg[22] * n then
    open(string.format('%d of the last %d calls were slow', slows, n), 0)
  end
end

local function probed()
  redis.call('ZREM', KEYS[3], permit)
  if learn == 'neutral' then reason = 'says nothing about the endpoint'; return end
  if learn == 'failure' or slow == 1 then
    if mode == 'half-open' then
      open(learn == 'failure' and 'a probe failed' or 'a probe was slow', (tonumber(state[17]) or 0) + 1)
    end
    return
  end
  local successes = (tonumber(state[18]) or 0) + 1
  if successes >= arg[27] then
    turn('closed', string.format('%d probes succeeded', successes))
    set('n', 0); set('fail', 0); set('slow', 0); set('micros', 0); set('row', 0); set('rounds', 0); set('lastp', 0)
    redis.call('DEL', KEYS[2])
  else
    if mode == 'open' then turn('half-open', 'the last endpoint answered') end
    set('succ', successes)
  end
end

local said = arg[1]
if (said >= 0 and said ~= generation) or mode == 'forced-open' or mode == 'disabled' then
  reason = 'from an older generation'
elseif mode ~= 'closed' then
  probed()
elseif learn == 'neutral' then
  reason = 'says nothing about the endpoint'
else
  learned()
end

local key, tenant = lane_of(KEYS[1], KEYS[4], 32, state), lane_of(KEYS[5], KEYS[6], 37)
local limit, peak, good, cut_s = tonumber(state[19]), tonumber(state[20]) or 0, tonumber(state[21]) or 0, tonumber(state[22]) or 0
if arg[6] == 1 then
  local began_s, factor, floor = arg[7], arg[29], arg[30]
  if began_s < 0 then began_s = now end
  if arg[28] == 1 and not (limit and began_s < cut_s) then
    if limit then
      limit = math.max(floor, limit * factor)
    else
      local flying = under_way(key)
      local from = key.places < 0 and flying or math.min(key.places, math.max(flying, 1))
      peak = key.places < 0 and from or key.places
      limit = math.max(floor, from * factor)
    end
    set('al', text(limit)); set('ap', text(peak)); set('ag', 0); set('ac', now_text)
  end
elseif learn == 'ok' and limit then
  good = good + 1
  if good < limit then
    set('ag', good)
  elseif limit + 1 >= peak then
    redis.call('HDEL', KEYS[1], 'al', 'ap', 'ag')
  else
    set('al', text(limit + 1)); set('ag', 0)
  end
end

redis.call('ZREM', KEYS[4], permit)
if tenant.places >= 0 then redis.call('ZREM', KEYS[6], permit) end
local costs = {arg[11], arg[9], arg[10]}
take(key, costs)
take(tenant, costs)
local closed_s = 0
for i = 1, 3 do
  local left, reset_s = arg[11 + i], arg[14 + i]
  if left >= 0 then
    if left > 0 then reset_s = 0 end
    if key.rate[i] <= 0 then
      closed_s = math.max(closed_s, reset_s)
    else
      fill(key, i, math.min(level_of(key, i), left - key.rate[i] * reset_s))
    end
  end
end
local longest, asked = arg[31], arg[8]
local not_before_s = math.max(tonumber(state[23]) or 0, now + math.min(closed_s, longest))
if asked >= 0 then not_before_s = math.max(not_before_s, now + math.min(asked, longest)) end
if not_before_s > now then set('nb', text(not_before_s)) end
if now - (tonumber(state[9]) or 0) > KEPT_S then
  set('kept', now_text)
  save(key, more)
  keep(1, 4, arg[42], mode)
else
  save(key, more)
end
local kept = {}
if tenant.is_limited and now - (tenant[9] or 0) > KEPT_S then kept = {'kept', now_text} end
save(tenant, kept)
if #kept > 0 then keep(5, 6, arg[42], mode) end
return reply(old, mode, retry_after_s, reason)
