-- Puts places of an index right that are found not to agree with the sessions themselves.
--
-- KEYS  the index
-- ARGV  1: now; then for each session what is to be done, packed, and its id
--
-- What is to be done is a letter; the letter and the time of the place that was seen; the session's life
--
--   F  forget    it was found gone. Not if it has another place by now
--   E  ended     it was found ended by somebody, at a time that was yet to come then: it has not run out
--   R  restore   it was found without a place, or may be

local now = clock((struct.unpack('>d', ARGV[1])))
for i = 2, #ARGV, 2 do
  local what, role, time, life = struct.unpack('>c1c1dI2c0', ARGV[i])
  local id = ARGV[i + 1]
  if what == 'R' then
    if not has_place(K, id) then
      life = unpack_life(life)
      put(K, id, life, now)
      go_with_last(K, now, life.gone, 0)
    end
  elseif time_in(call('ZSCORE', K, role .. id) or -1) == time then
    if what == 'F' then
      forget(K, id)
    else
      shelve(K, id, 'ended')
      call('ZREM', K, 'e' .. id)
    end
  end
end
return {1}
