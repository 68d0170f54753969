-- Purses of one tenant: check and charge all or none, correct a charge, or look; the pure twin is spending.py.
-- KEYS: the purses
-- arg: 1 how (0 read, 1 check, 2 force), 2 tokens, 3 money, then of each purse: tokens and money it may spend (-1 any),
--      period_s (0 none), ttl_s, the period that a correction is for (-1 the present one)
-- Returns packed doubles: position of the purse that is short (0 none), 1 when it is short of money, what is left of it,
--      then of each purse: period, tokens, money
local tokens, money, purses = arg[2], arg[3], {}
local short, kind, rest = 0, 0, 0
for i, name in ipairs(KEYS) do
  local at = 4 + (i - 1) * 5
  local period_s = arg[at + 2]
  local period = period_s > 0 and math.floor(now / period_s) or 0
  local state = redis.call('HMGET', name, 'p', 't', 'm', 'x')
  local is_present = tonumber(state[1]) == period
  local purse = {period, is_present and tonumber(state[2]) or 0, is_present and tonumber(state[3]) or 0}
  purse.is_present, purse.expires_s = is_present, tonumber(state[4]) or 0
  purses[i] = purse
  if short == 0 then
    local left_tokens, left_money = arg[at] - purse[2], arg[at + 1] - purse[3]
    if arg[at] >= 0 and (left_tokens < tokens or left_tokens <= 0) then
      short, kind, rest = i, 0, left_tokens
    elseif arg[at + 1] >= 0 and (left_money < money or (left_money <= 0 and money > 0)) then
      short, kind, rest = i, 1, left_money
    end
  end
end
local charges = arg[1] == 2 or (arg[1] == 1 and short == 0)
local answer = {short, kind, rest}
for i, name in ipairs(KEYS) do
  local at, purse = 4 + (i - 1) * 5, purses[i]
  if charges and (arg[at + 4] < 0 or arg[at + 4] == purse[1]) then
    purse[2], purse[3] = math.max(0, purse[2] + tokens), math.max(0, purse[3] + money)
    local ttl_s, renews = arg[at + 3], false
    if now + ttl_s > purse.expires_s then
      renews, ttl_s = true, math.ceil(ttl_s * 1.001) -- a little longer: renewed once in a while, not at every call
    end
    if renews or not purse.is_present then
      redis.call('HSET', name, 'p', purse[1], 't', purse[2], 'm', purse[3], 'x', math.max(purse.expires_s, now + ttl_s))
    elseif tokens ~= 0 or money ~= 0 then
      redis.call('HSET', name, 't', purse[2], 'm', purse[3])
    end
    if renews then
      redis.call('EXPIRE', name, ttl_s, 'NX')
      redis.call('EXPIRE', name, ttl_s, 'GT') -- a child that ends soon does not shorten its parent's memory
    end
  end
  answer[#answer + 1] = purse[1]
  answer[#answer + 1] = purse[2]
  answer[#answer + 1] = purse[3]
end
return struct.pack('<' .. string.rep('d', #answer), unpack(answer))
