-- One key as it stands; changes nothing.
-- KEYS: key, probes, flying  arg: 1-5 limits of the key, 6 floor_per_s, 7 cap
local state = redis.call('HMGET', KEYS[1], 'mode', 'row', 'n', 'fail', 'slow', 'micros', 'until', 'reason', 'gen', 'rounds', 'al', 'nb', 'rl', 'rlt')
local lane, left = lane_of(KEYS[1], KEYS[3], 1), {}
for i = 1, 3 do left[i] = lane.rate[i] > 0 and text(level_of(lane, i)) or '' end
local cap = arg[7]
local retries = math.min(cap, (tonumber(state[13]) or cap) + math.max(0, now - (tonumber(state[14]) or now)) * arg[6])
local alive = '(' .. text(now)
return reply(
  state[1] or 'closed', state[2] or '0', state[3] or '0', state[4] or '0', state[5] or '0', state[6] or '0', state[7] or '0',
  state[9] or '0', state[10] or '0', state[11] or '', state[12] or '0', text(now), text(retries),
  redis.call('ZCOUNT', KEYS[2], alive, '+inf'), redis.call('ZCOUNT', KEYS[3], alive, '+inf'), left[1], left[2], left[3],
  state[8] or ''
)
