-- Keep an answer and its place in the tenant's index; what expires first leaves when there are too many.
-- KEYS: answer, index (one hash slot). ARGV: answer, seconds to live, most answers of the tenant, prefix of answers, name.
local time = redis.call('TIME')
local now = tonumber(time[1])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 1)
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[3])
if over > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, over - 1)) do
    redis.call('UNLINK', ARGV[4] .. name)
    redis.call('ZREM', KEYS[2], name)
  end
end
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
redis.call('EXPIREAT', KEYS[2], math.ceil(tonumber(last[2])) + 1)
return 1
