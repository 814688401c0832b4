-- Changes places in the indexes on a cluster, where they can't be part of a session's own scripts.
--
-- KEYS  the index, the hash of orders; then the index of a user, if one is concerned
-- ARGV  1: now; then for each session what is to be done, packed, and its id
--
-- What is to be done is a letter, and what is known of the session: started at, how many times its place changed, its
-- life, how long its lease is held, and the order of its place as it was seen
--
--   E  enter     it is about to be made: a place for a minute, which is not counted
--   M  move      a turn commits at this moment, on this life. Only where there is a place
--   S  set       this is what its commit says
--   C  correct   this is what its record says. Only if its place is as it was seen
--   R  restore   the same, only where there is no place
--   L  leave     it was deleted
--   F  forget    it was found gone
--   W  wrong     it was found not to belong to this user
--
-- When it started and how many times its place changed are its order: of two changes, the later one stays, whichever
-- comes first. But a failover may have lost what was later, so in the end it is the record that counts.
--
-- Replies for each session: 1, or 0 if it had no place to be moved, or the order that overtook this one

local MINUTE, HOUR = 60000, 3600000
local INDEX, ORDERS = KEYS[1], KEYS[2]

local now = clock((struct.unpack('>d', ARGV[1])))
local indexes = {INDEX, KEYS[3]}

local function overtakes(order, started, writes)
  if order == '' then return false end
  local since, last = struct.unpack('>dd', order)
  return since > started or (since == started and last > writes)
end

local function enter(index, id)
  -- A place that it has keeps its end, and is as young as a new one.
  local entered = tonumber(call('ZSCORE', index, 'a' .. id) or 0)
  if entered < score(BY_ACTIVITY.active, now) or entered >= BY_ACTIVITY.idle * SHELF then
    call('ZADD', index, score(BY_ACTIVITY.active, now), 'a' .. id)
  end
  call('ZADD', index, 'NX', score(BY_START.active, now), 's' .. id, score(ENTERED, now + MINUTE), 'g' .. id)
end

-- A place that is younger than a minute may be that of a session about to be made: it is only no longer counted.
local function fade(index, id)
  local entered = time_in(call('ZSCORE', index, 'a' .. id) or 0)
  if entered <= now - MINUTE then return forget(index, id) end
  call('ZREM', index, 'i' .. id, 'e' .. id)
  call('ZADD', index, score(ENTERED, entered + MINUTE), 'g' .. id)
end

local function change(what, id, started, writes, life, hold, seen)
  if what == 'E' then
    for _, index in ipairs(indexes) do enter(index, id) end
    return 1
  elseif what == 'W' then
    fade(KEYS[3], id)
    return 1
  end
  local order = call('HGET', ORDERS, id) or ''
  if what == 'F' then
    if order ~= seen then return 1 end
    for _, index in ipairs(indexes) do fade(index, id) end
    if not call('ZSCORE', INDEX, 'a' .. id) then call('HDEL', ORDERS, id) end
    return 1
  end
  if what == 'C' then
    if order ~= seen then return 1 end
  elseif overtakes(order, started, writes) then
    return order
  elseif what == 'L' then
    for _, index in ipairs(indexes) do forget(index, id) end
    call('HDEL', ORDERS, id)
    return 1
  end
  life = unpack_life(life)
  if what == 'M' then
    life.active = now
    stamp(life, life.lifetime)
    if hold >= 0 then prolong(life, now + hold) end
  end
  local everywhere = 1
  for _, index in ipairs(indexes) do
    local placed = has_place(index, id)
    if not placed and what == 'M' then everywhere = 0 end
    if what == 'S' or what == 'C' or placed == (what == 'M') then put(index, id, life, now) end
  end
  if call('ZSCORE', INDEX, 'a' .. id) then call('HSET', ORDERS, id, struct.pack('>dd', started, writes)) end
  return everywhere
end

local done = {}
for i = 2, #ARGV, 2 do
  local what, started, writes, life, hold, seen = struct.unpack('>c1ddI2c0dBc0', ARGV[i])
  done[#done + 1] = change(what, ARGV[i + 1], started, writes, life, hold, seen)
end

-- An index goes an hour after the last of its places: who lists meanwhile may find that one still there.
for _, index in ipairs(indexes) do
  local last = call('ZREVRANGE', index, 0, 0, 'WITHSCORES')[2]
  if last then go_with_last(index, now, time_of(time_in(last)), HOUR) end
end
local left = call('PTTL', INDEX)
if left >= 0 then call('PEXPIRE', ORDERS, left) elseif left == -1 then call('PERSIST', ORDERS) end
return done
