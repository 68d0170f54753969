-- Erase every answer of a tenant. KEYS: index. ARGV: prefix of answers. Returns how many there were.
local names = redis.call('ZRANGE', KEYS[1], 0, -1)
local erased = 0
for _, name in ipairs(names) do
  erased = erased + redis.call('UNLINK', ARGV[1] .. name)
end
redis.call('UNLINK', KEYS[1])
return erased
