-- An operator or an account decides; the pure twin is circuit.step(Operate).
-- KEYS: key, window, probes  ARGV: numbers, mode, reason  arg: 1 seconds (infinite: until told otherwise), 2 ttl_s
-- Returns: old mode, new mode, retry_after_s ('' unknown), reason
local state = redis.call('HMGET', KEYS[1], 'mode', 'gen')
local old, mode, retry_after_s = state[1] or 'closed', ARGV[2], ''
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[1], 'mode', mode, 'gen', (tonumber(state[2]) or 0) + 1, 'reason', ARGV[3], 'succ', 0, 'rounds', 0)
if mode == 'closed' then
  redis.call('HSET', KEYS[1], 'n', 0, 'fail', 0, 'slow', 0, 'micros', 0, 'row', 0, 'until', 0, 'lastp', 0)
  redis.call('HDEL', KEYS[1], 'nb')
  redis.call('DEL', KEYS[2])
else
  local seconds = arg[1]
  redis.call('HSET', KEYS[1], 'until', text(now + seconds))
  if seconds < math.huge then retry_after_s = text(seconds) end
end
if mode == 'forced-open' or mode == 'disabled' then redis.call('PERSIST', KEYS[1]) end
keep(1, 3, arg[2], mode)
return reply(old, mode, retry_after_s, ARGV[3])
