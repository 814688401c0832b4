-- Whether a commit that was expected to follow a version is stored.
--
-- KEYS  K
-- ARGV  1: now, commit id, revision and id of the version
-- Replies 'stored', 'not_stored' or 'unknown'

local now, id, since_rev, since_id = struct.unpack('>dc8dBc0', ARGV[1])
local m = main(clock(now), true)
if not m.exists then return since_rev == 0 and 'not_stored' or 'unknown' end
local ring = m.ring
if ring_find(ring, m.rev, id) then return 'stored' end
local followed = m.rev - since_rev
if followed < 0 or followed > RING then return 'unknown' end
if since_rev >= 1 and followed < RING and ring_at(ring, since_rev) ~= since_id then return 'unknown' end
return 'not_stored'
