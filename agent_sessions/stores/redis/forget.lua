-- Takes places out of the index whose sessions were found gone, unless they were entered in the last minute.
--
-- KEYS  the index by activity, the index by end
-- ARGV  1: now; then the ids

local GRACE = 60000

local now = clock((struct.unpack('>d', ARGV[1])))
for i = 2, #ARGV do
  local time = call('ZSCORE', KEYS[1], ARGV[i])
  if time and tonumber(time) <= now - GRACE then
    call('ZREM', KEYS[1], ARGV[i])
    call('ZREM', KEYS[2], ARGV[i])
  end
end
return {1}
