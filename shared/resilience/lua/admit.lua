-- May a call be sent? Checks everything, then reserves everything; the pure twin is MemoryStore.admit_now.
-- KEYS: key, window, probes, flying, tenant, tenant's flying
-- ARGV: numbers, permit
-- arg: 1 is_last, 2 attempt, 3 lease_s, 4 tokens_in, 5 tokens_out, 6 probes, 7 probe_lease_s, 8 last_every_s, 9 ratio,
--      10 floor_per_s, 11 cap, 12-16 limits of the key, 17-21 of the tenant, 22 ttl_s
-- Returns: denial, scope, mode, retry_after_s ('' unknown), generation, is_probe, now, reason
local permit = ARGV[2]
local state = redis.call(
  'HMGET', KEYS[1], 'b1', 'b1t', 'b2', 'b2t', 'b3', 'b3t', 'rq', 'pq', 'kept', -- a lane's
  'mode', 'gen', 'until', 'succ', 'lastp', 'reason', 'n', 'micros', 'al', 'rl', 'rlt', 'nb'
)
local mode, generation = state[10] or 'closed', tonumber(state[11]) or 0
local until_s, successes, last_probe_s = tonumber(state[12]) or 0, tonumber(state[13]) or 0, tonumber(state[14]) or 0
local reason, is_probe, turned = state[15] or '', false, false

local function no(denial, scope, why, retry_after_s)
  return reply(denial, scope, mode, retry_after_s and text(retry_after_s) or '', generation, 0, now_text, why)
end

local may_try_the_last = arg[1] == 1 and now - last_probe_s >= arg[8]
local lease = false
if mode == 'forced-open' then return no('breaker', 'key', reason) end
if mode == 'open' or mode == 'disabled' then
  if now < until_s then
    if mode ~= 'open' or not may_try_the_last then
      local wait_s = nil
      if until_s < math.huge then wait_s = until_s - now end
      return no('breaker', 'key', reason, wait_s)
    end
    is_probe, reason = true, 'the last endpoint is asked now and then'
  else
    mode, generation, successes, turned = 'half-open', generation + 1, 0, true
  end
end
if mode == 'half-open' then
  if turned then redis.call('DEL', KEYS[3]) else redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now_text) end
  if redis.call('ZCARD', KEYS[3]) + successes < arg[6] then
    is_probe, lease, reason = true, true, 'half-open: a probe'
  elseif may_try_the_last then
    is_probe, reason = true, 'the last endpoint is asked now and then'
  else
    local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
    local wait_s = 1
    if first[2] then wait_s = math.min(wait_s, tonumber(first[2]) - now) end
    return no('breaker', 'key', 'half-open: all probes are under way', wait_s)
  end
elseif mode == 'closed' then
  reason = 'closed'
end

local not_before_s = tonumber(state[21]) or 0
if not_before_s > now then return no('not_before', 'key', reason, not_before_s - now) end

local ratio, floor_per_s, cap = arg[9], arg[10], arg[11]
local retries = math.min(cap, (tonumber(state[19]) or cap) + math.max(0, now - (tonumber(state[20]) or now)) * floor_per_s)
local is_retry = arg[2] > 1
if is_retry and retries < 1 then
  local wait_s = nil
  if floor_per_s > 0 then wait_s = (1 - retries) / floor_per_s end
  return no('retry_budget', 'key', reason, wait_s)
end

local calls, call_s = tonumber(state[16]) or 0, 1
if calls > 0 then call_s = (tonumber(state[17]) or 0) / 1000000 / calls end
local costs = {1, arg[4], arg[5]}
local key, tenant = lane_of(KEYS[1], KEYS[4], 12, state), lane_of(KEYS[5], KEYS[6], 17)
local limit = key.places
if tonumber(state[18]) then
  limit = math.floor(tonumber(state[18]))
  if key.places >= 0 then limit = math.min(limit, key.places) end
end
local cause, wait_s = refused(key, costs, limit, call_s)
if cause then return no(cause, 'key', reason, wait_s) end
cause, wait_s = refused(tenant, costs, tenant.places, call_s)
if cause then return no(cause, 'tenant', reason, wait_s) end

local more = {}
local function set(field, value) more[#more + 1] = field; more[#more + 1] = value end
local retries_after = is_retry and retries - 1 or math.min(cap, retries + ratio)
if retries_after ~= (tonumber(state[19]) or cap) or retries_after < cap then
  set('rl', text(retries_after)); set('rlt', now_text)
end
if turned then
  set('mode', mode); set('gen', generation); set('succ', 0); set('reason', 'the open time is over')
end
if is_probe then set('lastp', now_text) end
-- Whatever is made here outlives no process that dies before it settles anything.
local function lease_for(name, seconds)
  redis.call('ZADD', name, text(now + seconds), permit)
  redis.call('EXPIRE', name, arg[22])
end
if lease then lease_for(KEYS[3], arg[7]) end
take(key, costs)
take(tenant, costs)
save(key, more)
save(tenant, {})
lease_for(KEYS[4], arg[3])
if tenant.places >= 0 then lease_for(KEYS[6], arg[3]) end
if not state[9] then redis.call('EXPIRE', KEYS[1], arg[22]) end
if tenant.is_limited and not tenant[9] then redis.call('EXPIRE', KEYS[5], arg[22]) end
return reply('', 'key', mode, '', generation, is_probe and 1 or 0, now_text, reason)
