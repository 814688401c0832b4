-- What every script of the store begins with. `scripts.py` puts this page in front of each of the others.
--
-- A session is the hash KEYS[1] and, beside it, all with the same hash tag:
--
--   K               the main hash, below
--   K:v             hash of values: <namespace>/<name> -> bytes
--   K:l<part>       list: a log, one element per item: 6 bytes of sequence number (big-endian), then the payload
--   K:c<part>       hash: a collection's entries        K:z<part>   zset, all scores 0: their keys in byte order
--
-- <part> is <namespace>/<name>, the namespace escaped, so that the first slash ends it.
--
-- Fields of the main hash:
--
--   v  revision (absent: no session, at most a lease)    i  id of the last commit
--   c  ring of the last 64 commit ids, 8 bytes each; that of revision n stands at n % 64
--   l p  its life, as in life.lua    b  belongs to: `=` and the user (absent: nobody)
--   t  tag of the record    f  format    k  registry    .<name>  a record field
--   m  counters: a 2-byte length, the name and an 8-byte float each    d  ids of the last 16 amendments, 8 bytes each
--   n  tenant and id, each after its 2-byte length, where the key's name has but their hash
--   lo lx ls  the lease: owner, end, since               w  the queue: [owner, deadline, channel, ...] as msgpack
--
-- The registry is what the session has: entries of (2-byte length, id, three 6-byte numbers), where id is
--
--   l<part>  a log: items in it, sequence number of the last one, highest number ever given
--   c<part>  a collection that has entries: how many, the revision that last changed it, 0
--   v<ns>    a namespace of values: how many, the revision that last changed one, 0
--
-- The key of a log or collection is K, a colon and its id in the registry. A call's KEYS are K; where they are
-- needed, the index (places.lua) and that of the user that the session belongs to; then the parts in any order, only
-- that K:z<part> follows K:c<part>. On a cluster, where the indexes may lie on another node, they are left out, and
-- `index.lua` follows. Scripts do not roll back: every script makes all its checks before its first write, and a
-- refusal is an ordinary reply, never a Redis error.

local FORMAT, RING, HANDOVER, SLICE = 1, 64, 2000, 1000
local K, V, call = KEYS[1], KEYS[1] .. ':v', redis.call

-- Times and durations are whole milliseconds, stored in 6 bytes. In a script, what never comes is infinitely far.
local NEVER, INFINITY = 2 ^ 48 - 1, math.huge

local function time_of(stored) return stored == NEVER and INFINITY or stored end
local function stored(time) return time == INFINITY and NEVER or math.max(0, math.min(time, NEVER - 1)) end

-- The time: the caller's if it brought one (tests do), else the server's. A caller's clock may be slower than the
-- server's, which must not take away then what is still alive.
local spare = 0
local function clock(given)
  if given >= 0 then
    spare = 60000
    return given
  end
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Has the server take a key away after so long.
local function expire(key, ms)
  call('PEXPIRE', key, ms + spare)
end

-- The main hash at `now`. `exists` is false for what is past its time, whether Redis has swept it or not.
-- The ring is as long as all the rest together, so it comes only if asked for.
local function main(now, with_ring)
  local m = with_ring
    and call('HMGET', K, 'v', 'i', 'l', 'm', 'b', 't', 'f', 'lo', 'lx', 'ls', 'w', 'k', 'p', 'c')
    or call('HMGET', K, 'v', 'i', 'l', 'm', 'b', 't', 'f', 'lo', 'lx', 'ls', 'w', 'k', 'p')
  local gone, till = m[3] and time_of(struct.unpack('>I6', m[3])), tonumber(m[9] or nil)
  return {
    found = m[1] and true, exists = m[1] and gone > now or false,
    rev = tonumber(m[1] or 0), id = m[2] or '', life = m[3] and m[3] .. m[13] or '', gone = gone, counters = m[4] or '',
    belongs = m[5], tag = m[6] or '', format = tonumber(m[7] or 0),
    owner = m[8], till = till, since = tonumber(m[10] or nil), live = till and till > now or false,
    queue = m[11], registry = m[12] or '', ring = m[14] or '',
  }
end

-- ------------------------------------------------------------------------------------------------- the ring

-- The id of the commit that made a revision; revisions older than 64 have lost their place.
local function ring_at(ring, rev)
  local at = rev % RING * 8
  return string.sub(ring, at + 1, at + 8)
end

local function ring_put(ring, rev, id)
  local at = rev % RING * 8
  if #ring < at then ring = ring .. string.rep('\0', at - #ring) end
  return string.sub(ring, 1, at) .. id .. string.sub(ring, at + 9)
end

-- The revision that a commit made, if the ring has it.
local function ring_find(ring, last, id)
  local from = 1
  while true do
    local at = string.find(ring, id, from, true)
    if not at then return nil end
    if (at - 1) % 8 == 0 then
      local rev = last - (last - (at - 1) / 8) % RING
      if rev >= 1 then return rev end
    end
    from = at + 1
  end
end

-- ------------------------------------------------------------------------------------------------- the registry

local function parse_registry(packed)
  local entries, order, at = {}, {}, 1
  while at <= #packed do
    local id, a, b, c
    id, a, b, c, at = struct.unpack('>I2c0I6I6I6', packed, at)
    entries[id] = {a, b, c}
    order[#order + 1] = id
  end
  return entries, order
end

local function pack_entry(id, e)
  return struct.pack('>I2c0I6I6I6', #id, id, e[1], e[2], e[3])
end

-- Where the parts begin among KEYS. `declared` is the user whose index is there: empty, nobody's; `-`, there is none.
local function parts_begin(declared)
  if declared == '-' then return 2 end
  return declared ~= '' and 4 or 3
end

-- Whether that is the index of the user whom the session belongs to.
local function indexes_fit(declared, belongs)
  return declared == '-' or declared == (belongs or '')
end

-- Whether every key that the registry counts is among KEYS from `first` on.
local function all_declared(entries, first)
  local declared = {}
  for i = first, #KEYS do declared[string.sub(KEYS[i], #K + 2)] = true end
  for id, e in pairs(entries) do
    if string.byte(id) == 118 then id = 'v' end
    if e[1] > 0 and not declared[id] then return false end
  end
  return true
end

-- ------------------------------------------------------------------------------------------------- the queue

-- The waiters that are still asking, in order of arrival: {owner, deadline, channel} each.
local function waiters(packed, now)
  local live = {}
  if packed then
    local flat = cmsgpack.unpack(packed)
    for i = 1, #flat, 3 do
      if flat[i + 1] > now then live[#live + 1] = {flat[i], flat[i + 1], flat[i + 2]} end
    end
  end
  return live
end

local function save_waiters(queue)
  if #queue == 0 then return call('HDEL', K, 'w') end
  local flat = {}
  for _, t in ipairs(queue) do
    for j = 1, 3 do flat[#flat + 1] = t[j] end
  end
  call('HSET', K, 'w', cmsgpack.pack(flat))
end

local function place_of(queue, owner)
  for i, t in ipairs(queue) do
    if t[1] == owner then return i end
  end
end

-- Gives the lease to the first waiter other than `leaving` and wakes it; to nobody if there is none.
-- A user without rights on the channel must not break a commit: the waiter then finds out by asking.
local function hand_over(now, queue, leaving)
  local place = leaving and place_of(queue, leaving)
  if place then table.remove(queue, place) end
  local first = table.remove(queue, 1)
  if not first then
    call('HDEL', K, 'lo', 'lx', 'ls', 'w')
    return nil
  end
  call('HSET', K, 'lo', first[1], 'lx', now + HANDOVER, 'ls', now)
  save_waiters(queue)
  if first[3] ~= '' then redis.pcall('PUBLISH', first[3], first[1]) end
  return now + HANDOVER
end

-- When the main hash itself may go: not before the session, nor before the lease or a waiter's place.
local function last_need(gone, till, queue)
  local last = gone
  if till and till > last then last = till end
  for _, t in ipairs(queue) do
    if t[2] > last then last = t[2] end
  end
  return last
end

-- After a change of lease or queue alone: a main hash that would go too early stays long enough.
local function outlive(now, m, till, queue)
  local gone = m.exists and m.gone or 0
  local last = last_need(gone, till, queue)
  if last > gone and last > now then expire(K, last - now) end
end

-- After a change of its end: all keys of a session go with it.
local function go_at(gone, now, m, till, queue, first_part)
  if gone < INFINITY then
    expire(K, last_need(gone, till, queue) - now)
    for i = first_part, #KEYS do expire(KEYS[i], gone - now) end
  elseif not m.exists or m.gone < INFINITY then
    call('PERSIST', K)
    for i = first_part, #KEYS do call('PERSIST', KEYS[i]) end
  end
end
