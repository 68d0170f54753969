-- What every script of a gate begins with: the server's time, and the arithmetic of lanes.py.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

-- Digits of doubles are a good part of a script's time: the present moment is written once, and what did not change not.
local function text(x) return string.format('%.17g', x) end
local now_text = text(now)

-- Numbers travel as packed doubles: exact, and one argument instead of forty.
local function unpacked(bytes) return {struct.unpack('<' .. string.rep('d', #bytes / 8), bytes)} end
local arg = unpacked(ARGV[1])

-- One string is read five times as fast as a list; whatever may contain anything comes last.
local function reply(...) return table.concat({...}, '\31') end

-- A lane: three token buckets (level, at), a queue for the rates and one for the places; its limits start at arg[first].
-- Without limits nothing is read or written, but for the calls under way at the key. `known`: its fields, read already.
local LANE = {'b1', 'b1t', 'b2', 'b2t', 'b3', 'b3t', 'rq', 'pq', 'kept'}
local KEPT_S = 60
local QUEUE_MAX_S = 60

local function lane_of(hash, flying, first, known)
  local lane = {hash = hash, flying = flying, rate = {arg[first], arg[first + 1], arg[first + 2]}, is_changed = {}}
  lane.places, lane.burst = arg[first + 3], arg[first + 4]
  lane.is_limited = lane.places >= 0 or math.max(arg[first], arg[first + 1], arg[first + 2]) > 0
  if not known and lane.is_limited then known = redis.call('HMGET', hash, unpack(LANE)) end
  if known then
    for i = 1, #LANE do lane[i] = tonumber(known[i]) end
  end
  return lane
end

local function cap_of(lane, i) return math.max(lane.rate[i] * lane.burst, 1) end

local function level_of(lane, i)
  local cap, level, at = cap_of(lane, i), lane[2 * i - 1], lane[2 * i]
  if not level then level, at = cap, now end
  if now > at then level, at = math.min(cap, level + (now - at) * lane.rate[i]), now end
  lane[2 * i - 1], lane[2 * i] = level, at
  return level
end

local function queued(last, wait_s, spacing_s)
  local soonest = now + wait_s
  return math.min(math.max(soonest, (last or 0) + spacing_s), math.max(soonest, now + QUEUE_MAX_S))
end

local function under_way(lane)
  redis.call('ZREMRANGEBYSCORE', lane.flying, '-inf', now_text)
  return redis.call('ZCARD', lane.flying)
end

local CAUSES = {'requests', 'input_tokens', 'output_tokens'}

local function refused(lane, costs, limit, call_s)
  local wait_s, spacing_s, cause = 0, 0, nil
  for i = 1, 3 do
    local rate = lane.rate[i]
    if rate > 0 and costs[i] > 0 then
      local missing = math.min(costs[i], cap_of(lane, i)) - level_of(lane, i)
      if missing > 0 and missing / rate > wait_s then
        wait_s, spacing_s, cause = missing / rate, costs[i] / rate, CAUSES[i]
      end
    end
  end
  if cause then
    lane[7] = queued(lane[7], wait_s, spacing_s)
    redis.call('HSET', lane.hash, 'rq', text(lane[7]))
    return cause, lane[7] - now
  end
  -- Those whose process died are looked for only where they would keep somebody out.
  if limit >= 0 and redis.call('ZCARD', lane.flying) >= limit and under_way(lane) >= limit then
    lane[8] = queued(lane[8], call_s / limit, call_s / limit)
    redis.call('HSET', lane.hash, 'pq', text(lane[8]))
    return 'concurrency', lane[8] - now
  end
end

local function fill(lane, i, level)
  lane[2 * i - 1] = level
  lane.is_changed[i] = true
end

local function take(lane, costs)
  for i = 1, 3 do
    if lane.rate[i] > 0 and costs[i] ~= 0 then
      fill(lane, i, math.min(cap_of(lane, i), level_of(lane, i) - costs[i]))
    end
  end
end

local function save(lane, more)
  for i = 1, 3 do
    if lane.is_changed[i] then
      local at, size = lane[2 * i], #more
      more[size + 1], more[size + 2] = LANE[2 * i - 1], text(lane[2 * i - 1])
      more[size + 3], more[size + 4] = LANE[2 * i], at == now and now_text or text(at)
    end
  end
  if #more > 0 then redis.call('HSET', lane.hash, unpack(more)) end
end

-- Whatever nobody touches any more is forgotten; what an operator said is not. Renewed once a minute.
local function keep(first, last, ttl_s, mode)
  for i = first, last do
    if i > 1 or (mode ~= 'forced-open' and mode ~= 'disabled') then redis.call('EXPIRE', KEYS[i], ttl_s) end
  end
end
