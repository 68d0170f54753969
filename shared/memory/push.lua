-- Merges messages into one session's cache entry, a sorted set ordered by the ids of the truth.
-- KEYS[1] the entry, KEYS[2] the session's causal token: where the log was when its last message had been written.
-- ARGV: ttl_s, messages to keep, 1 when this fills the entry, a token or '', then (id, member) pairs.
--   Of a push the token says where its messages are; without one nobody knows any more, and readers ask the primary.
--   Of a fill it says what the read was sure to see; without one that was the primary, which sees everything.
local key, ttl_s, keep, is_fill = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'

-- As `shared.db.tokens` writes and orders them; positions are too long for Lua's numbers.
local function parsed(text)
  local system, timeline, lsn, minted = string.match(text or '', '^wt1%.(%x+)%.(%d+)%.(%x+)%.(%d+)$')
  return system and { text = text, system = system, timeline = tonumber(timeline), lsn = lsn, minted = tonumber(minted) }
end
local function is_ahead(one, other)
  if one.system ~= other.system then return one.minted > other.minted end
  if one.timeline ~= other.timeline then return one.timeline > other.timeline end
  if #one.lsn ~= #other.lsn then return #one.lsn > #other.lsn end
  return one.lsn > other.lsn
end

local given, known = parsed(ARGV[4]), parsed(redis.call('GET', KEYS[2]))
local is_complete = is_fill and (not given or (known and not is_ahead(known, given)))
if not is_fill then
  if given then
    local last = known and is_ahead(known, given) and known or given
    redis.call('SET', KEYS[2], last.text, 'EX', 2 * ttl_s)  -- it outlives the entry: the fill after it needs it
  else
    redis.call('DEL', KEYS[2])
  end
end
for i = 5, #ARGV, 2 do
  redis.call('ZADD', key, ARGV[i], ARGV[i + 1])
end
if is_complete then
  redis.call('ZADD', key, -1, 'complete')
end
-- A push does not prolong the entry: whatever it misses heals when it expires.
if is_complete or redis.call('TTL', key) < 0 then
  redis.call('EXPIRE', key, ttl_s)
end
local marks = redis.call('ZSCORE', key, 'complete') and 1 or 0
local surplus = redis.call('ZCARD', key) - marks - keep
if surplus > 0 then
  redis.call('ZREMRANGEBYRANK', key, marks, marks + surplus - 1)
end
