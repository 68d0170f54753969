-- Merges messages into one session's cache entry, a sorted set ordered by the ids of the truth.
-- KEYS[1] the entry; ARGV: ttl_s, messages to keep, 1 when this fills the entry, then (id, member) pairs.
local key, ttl_s, keep, is_fill = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
for i = 4, #ARGV, 2 do
  redis.call('ZADD', key, ARGV[i], ARGV[i + 1])
end
if is_fill then
  redis.call('ZADD', key, -1, 'complete')
end
-- A push does not prolong the entry: whatever it misses heals when it expires.
if is_fill or redis.call('TTL', key) < 0 then
  redis.call('EXPIRE', key, ttl_s)
end
local marks = redis.call('ZSCORE', key, 'complete') and 1 or 0
local surplus = redis.call('ZCARD', key) - marks - keep
if surplus > 0 then
  redis.call('ZREMRANGEBYRANK', key, marks, marks + surplus - 1)
end
