-- Puts places of an index right that are found not to agree with the sessions themselves.
--
-- KEYS  the index by activity, the index by end
-- ARGV  1: now; then for each session what is to be done, packed, and its id
--
-- What is to be done is a letter, and two times
--
--   F  forget    it was found gone, its place being: active at. Not if it has another one by now
--   R  restore   it was found without a place, or may be: active at, gone at (-1: never)

local now = clock((struct.unpack('>d', ARGV[1])))
for i = 2, #ARGV, 2 do
  local what, active, gone = struct.unpack('>c1dd', ARGV[i])
  local id = ARGV[i + 1]
  if what == 'R' then
    call('ZADD', KEYS[1], 'NX', active, id)
    call('ZADD', KEYS[2], 'NX', gone >= 0 and gone or '+inf', id)
  elseif tonumber(call('ZSCORE', KEYS[1], id) or -1) == active then
    call('ZREM', KEYS[1], id)
    call('ZREM', KEYS[2], id)
  end
end
if call('ZCARD', KEYS[2]) > 0 then go_with_last(KEYS[1], KEYS[2], now) end
return {1}
