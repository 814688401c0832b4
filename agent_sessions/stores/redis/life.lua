-- ------------------------------------------------------------------------------------------------- a session's life

-- When it is idle, has ended, and is gone: word for word what `stores/lifetime.py` and `stores/life.py` say, which is
-- what the stores in Python do. What is None there is INFINITY here.
--
-- It is packed in 13 numbers of 6 bytes: gone at, idle at, ends at; started at, active at, ended at, expires at; how
-- many times the place of the session changed; and its lifetime, of five. Then a byte tells which of the lifetime are
-- the session's own, and these follow, 6 bytes each. What changes with every commit, and what seldom does, are fields of
-- their own: none is longer than the 64 bytes that Redis keeps compact.

local LIFETIME = {'idle', 'end', 'absolute', 'ttl', 'retention'}

local function unpack_own(packed, at)
  local own, which = {}, string.byte(packed, at)
  if which == 0 then return own end
  at = at + 1
  for i, name in ipairs(LIFETIME) do
    if bit.band(which, 2 ^ (i - 1)) ~= 0 then
      own[name], at = struct.unpack('>I6', packed, at)
      own[name] = time_of(own[name])
    end
  end
  return own
end

local function lifetime_of(idle, after_idle, absolute, ttl, retention)
  return {
    idle = time_of(idle), ['end'] = time_of(after_idle), absolute = time_of(absolute), ttl = time_of(ttl),
    retention = time_of(retention),
  }
end

local function unpack_lifetime(packed)
  return lifetime_of(struct.unpack('>I6I6I6I6I6', packed))
end

local function unpack_life(packed)
  local gone, idle, ends, started, active, ended, expires, writes, idle_ms, end_ms, absolute_ms, ttl_ms, retention_ms,
    at = struct.unpack('>I6I6I6I6I6I6I6I6I6I6I6I6I6', packed)
  return {
    gone = time_of(gone), idle = time_of(idle), ends = time_of(ends), started = started, active = active,
    ended = time_of(ended), expires = time_of(expires), writes = writes, own = unpack_own(packed, at),
    lifetime = lifetime_of(idle_ms, end_ms, absolute_ms, ttl_ms, retention_ms),
  }
end

local function pack_life(l)
  local t, which, own = l.lifetime, 0, ''
  if next(l.own) then
    for i, name in ipairs(LIFETIME) do
      if l.own[name] then
        which, own = which + 2 ^ (i - 1), own .. struct.pack('>I6', stored(l.own[name]))
      end
    end
  end
  return struct.pack('>I6I6I6I6I6I6I6I6I6I6I6I6I6B', stored(l.gone), stored(l.idle), stored(l.ends), stored(l.started),
    stored(l.active), stored(l.ended), stored(l.expires), l.writes, stored(t.idle), stored(t['end']), stored(t.absolute),
    stored(t.ttl), stored(t.retention), which) .. own
end

-- Fields of the main hash that keep a life.
local function life_fields(packed)
  return 'l', string.sub(packed, 1, 48), 'p', string.sub(packed, 49)
end

local function status_of(l, now)
  if l.ends <= now then return 'ended' end
  return l.idle <= now and 'idle' or 'active'
end

-- The end by the clock alone: the given one, or that of its age.
local function expiry(l)
  return math.min(l.expires, l.started + l.lifetime.absolute)
end

-- The stamps of an activity: idle at, ends at, gone at. Until `busy` it is neither idle nor gone, nor does it end by
-- idling.
local function stamps(l, busy)
  local t = l.lifetime
  local idle = math.max(busy, l.active + t.idle)
  local idled_out = math.max(busy, idle + t['end'])
  local faded = math.max(busy, l.active + t.ttl)
  local ends = math.min(l.ended, expiry(l), idled_out)
  local gone = (ends == INFINITY or faded < ends) and faded or ends + t.retention
  ends = math.min(ends, gone)
  return math.min(idle, ends), ends, gone
end

-- Stamps it by a lifetime, but for what it has of its own.
local function stamp(l, lifetime)
  for name, own in pairs(l.own) do lifetime[name] = own end
  l.lifetime = lifetime
  l.idle, l.ends, l.gone = stamps(l, 0)
end

-- Somebody is known to work on it until then: none of its stamps gets nearer.
local function prolong(l, till)
  local idle, ends, gone = stamps(l, till)
  l.idle, l.ends, l.gone = math.max(l.idle, idle), math.max(l.ends, ends), math.max(l.gone, gone)
end

-- The refusal of what is done to one that has ended; nil if it has not. It has expired if it ended by the clock.
local function ended(l, now)
  if status_of(l, now) ~= 'ended' then return nil end
  return {'E', l.ends == expiry(l) and 1 or 0}
end

-- ------------------------------------------------------------------------------------------------- counters

local function add_counters(packed, more)
  if more == '' then return packed end
  local order, numbers = {}, {}
  for _, some in ipairs({packed, more}) do
    local at = 1
    while at <= #some do
      local name, number
      name, number, at = struct.unpack('>I2c0d', some, at)
      if not numbers[name] then order[#order + 1] = name end
      numbers[name] = (numbers[name] or 0) + number
    end
  end
  local sums = {}
  for i, name in ipairs(order) do sums[i] = struct.pack('>I2c0d', #name, name, numbers[name]) end
  return table.concat(sums)
end
