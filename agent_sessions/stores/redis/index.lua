-- Changes places in the indexes on a cluster, where they can't be part of a session's own scripts.
--
-- KEYS  the index by activity, the index by end, the hash of orders; then the same first two of a user, if one is
--       concerned
-- ARGV  1: now; then for each session what is to be done, packed, and its id
--
-- What is to be done is a letter, and what is known of the session: started at, revision, active at, gone at (-1:
-- never), and the order of its place as it was seen
--
--   E  enter     it is about to be made: a place for a minute, which is not counted
--   M  move      a turn commits at this moment; gone at is its time to live. Only where there is a place
--   S  set       this is what its commit says
--   C  correct   this is what its record says. Only if its place is as it was seen
--   R  restore   the same, only where there is no place
--   L  leave     it was deleted
--   F  forget    it was found gone. Only if its place is a minute old: it may be about to be made
--   W  wrong     it was found not to belong to this user
--
-- When it started and its revision are its order: of two changes, the later one stays, whichever comes first. But a
-- failover may have lost what was later, so in the end it is the record that counts.
--
-- Replies for each session: 1, or 0 if it had no place to be moved, or the order that overtook this one

local MINUTE, HOUR = 60000, 3600000
local ORDERS = KEYS[3]

local now = clock((struct.unpack('>d', ARGV[1])))
local indexes = {{KEYS[1], KEYS[2]}}
if KEYS[4] then indexes[2] = {KEYS[4], KEYS[5]} end

local function has_place(index, id)
  return call('ZSCORE', index[1], id) and call('ZSCORE', index[2], id) and true or false
end

local function leave(index, id)
  call('ZREM', index[1], id)
  call('ZREM', index[2], id)
end

local function overtakes(order, started, rev)
  if order == '' then return false end
  local since, last = struct.unpack('>dd', order)
  return since > started or (since == started and last > rev)
end

local function change(what, id, started, rev, active, gone, seen)
  if what == 'E' then
    -- A place that it has keeps its end, and is as young as a new one. The end of a new one stands below zero.
    for _, index in ipairs(indexes) do
      call('ZADD', index[1], 'GT', now, id)
      call('ZADD', index[2], 'NX', -now - MINUTE, id)
    end
    return 1
  elseif what == 'W' then
    leave(indexes[2], id)
    return 1
  elseif what == 'F' then
    for _, index in ipairs(indexes) do
      local entered = tonumber(call('ZSCORE', index[1], id) or 0)
      if entered <= now - MINUTE then leave(index, id) end
    end
    if not call('ZSCORE', KEYS[1], id) then call('HDEL', ORDERS, id) end
    return 1
  end
  local order = call('HGET', ORDERS, id) or ''
  if what == 'C' then
    if order ~= seen then return 1 end
  elseif overtakes(order, started, rev) then
    return order
  elseif what == 'L' then
    for _, index in ipairs(indexes) do leave(index, id) end
    call('HDEL', ORDERS, id)
    return 1
  end
  local everywhere = 1
  if what == 'M' then active, gone = now, gone >= 0 and now + gone or -1 end
  for _, index in ipairs(indexes) do
    local placed = has_place(index, id)
    if not placed and what == 'M' then everywhere = 0 end
    if what == 'S' or what == 'C' or placed == (what == 'M') then
      call('ZADD', index[1], active, id)
      call('ZADD', index[2], gone >= 0 and gone or '+inf', id)
    end
  end
  if call('ZSCORE', KEYS[1], id) then call('HSET', ORDERS, id, struct.pack('>dd', started, rev)) end
  return everywhere
end

local done = {}
for i = 2, #ARGV, 2 do
  local what, started, rev, active, gone, seen = struct.unpack('>c1ddddBc0', ARGV[i])
  done[#done + 1] = change(what, ARGV[i + 1], started, rev, active, gone, seen)
end

-- An index goes an hour after the last of its places: who lists meanwhile may find that one still there.
local function go_with_last_place(index, orders)
  local last = call('ZREVRANGE', index[2], 0, 0, 'WITHSCORES')[2]
  if not last then return end
  for _, key in ipairs({index[1], index[2], orders}) do
    if last == 'inf' then call('PERSIST', key) else call('PEXPIRE', key, math.max(last - now, 0) + HOUR) end
  end
end
go_with_last_place(indexes[1], ORDERS)
if indexes[2] then go_with_last_place(indexes[2]) end
return done
