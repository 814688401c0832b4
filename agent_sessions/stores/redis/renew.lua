-- Moves the end of a lease, and the end of a session that would go before it.
--
-- KEYS  K; or all of the session as in commit.lua, when its end must move
-- ARGV  1: now, ms, owner, the user whose index is declared (as in common.lua), the session's id in the index
-- Replies {1} renewed, {2} and the session's end has moved, {0} not the holder, {'K', registry, belongs to} declare these
-- too and repeat

local now, ms, owner, declared, member = struct.unpack('>ddI2c0I2c0I2c0', ARGV[1])
now = clock(now)
local m = main(now)
if not m.live or m.owner ~= owner then return {0} end

local till = now + ms
local extends = m.exists and m.gone and m.gone < till
local first_part = parts_begin(declared)
if extends then
  local fits = #KEYS > 1 and indexes_fit(declared, m.belongs)
  if not fits or not all_declared(parse_registry(m.registry), first_part) then
    return {'K', m.registry, m.belongs or false}
  end
end

call('HSET', K, 'lx', till)
if extends then
  call('HSET', K, 'g', till)
  for i = first_part, #KEYS do call('PEXPIRE', KEYS[i], ms) end
  for i = 3, first_part - 1, 2 do
    call('ZADD', KEYS[i], till, member)
    go_with_last(KEYS[i - 1], KEYS[i], now)
  end
  m.gone = till
  call('PEXPIRE', K, last_need(till, till, waiters(m.queue, now)) - now)
  return {2}
end
outlive(now, m, till, waiters(m.queue, now))
return {1}
