"""The rules of rules.py in Lua, as Redis runs them. Each script touches keys of one bucket only.

A bucket has an index (sorted set of live members by name), a set of tombstones (sorted set of members by
time) and its records (strings, see packed.py). KEYS are index, tombstones, then the records; a member is
tenant, model and id, separated by zero bytes. A record of a format that is not known here stays as it is.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

_PRELUDE = """
local FORMAT, SIZE, HEADER = 1, 88, '<BBxxxxxxI8I8I8I8dc16c16I8'
local LIVE, EPHEMERAL, BLOB = 1, 2, 4
local index, tombs = KEYS[1], KEYS[2]

local function read(key)
  local text = redis.call('GETRANGE', key, 0, SIZE - 1)
  if text == '' then return nil end
  local format = string.byte(text)
  local r = {text = text}
  if format == FORMAT and #text >= SIZE then
    r.format, r.flags, r.version, r.epoch, r.position, r.incarnation, r.saved_at, r.writer, r.owner, r.fence =
      struct.unpack(HEADER, text)
  else
    -- Above every epoch and younger than every time: nothing is written over it, and it does not expire.
    return {unknown = true, live = false, epoch = math.huge, fence = math.huge, saved_at = math.huge}
  end
  r.live = r.flags % 2 == 1
  r.ephemeral = r.flags % 4 >= EPHEMERAL
  r.blob = r.flags % 8 >= BLOB
  return r
end

local function header(flags, version, epoch, position, incarnation, saved_at, writer, owner, fence)
  return struct.pack(HEADER, FORMAT, flags, version, epoch, position, incarnation, saved_at, writer, owner, fence)
end
"""

_CLAIM = """
local CREATE, RESUME, EITHER, REPLACE, NOBODY = 1, 2, 3, 4, string.rep('\\0', 16)
local answers = {}
for i = 1, #KEYS - 2 do
  local key, member = KEYS[i + 2], ARGV[2 * i - 1]
  local mode, ephemeral, exact, blob, incarnation, seen, replay, held_epoch, held_position, version, now, writer, owner,
    carried, base, size = struct.unpack('<BBBBxxxxI8I8I8I8I8I8dc16c16I8I8', ARGV[2 * i])
  local stored = read(key)
  local top = math.max(held_epoch, seen)
  local live = stored and stored.live and stored.epoch >= top
  local as_it_stands = live and stored.text or ''
  local over = not stored or (stored.live and stored.fence <= held_epoch)
  local held = held_epoch > 0 and held_epoch == top and over
  local current = held and held_position or (live and stored.position or 0)
  local anew = mode == REPLACE
  local free = not anew and not held
  local answer
  if stored and stored.unknown then
    answer = 'U'
  elseif stored and (incarnation < stored.incarnation
      or stored.live and writer ~= stored.writer and (incarnation == stored.incarnation
        or (mode == RESUME or mode == EITHER) and seen > 0 and seen < stored.epoch)) then
    answer = 'R' .. stored.text
  elseif mode == CREATE and (live or held) then
    answer = 'E' .. as_it_stands
  elseif mode == RESUME and not live and not held then
    answer = 'M'
  elseif free and base > 0 and (not live or stored.epoch ~= base or stored.position ~= carried) then
    answer = 'O' .. as_it_stands
  elseif free and exact == 1 and base == 0 and live and stored.version ~= version then
    answer = 'O' .. as_it_stands
  elseif not anew and current < replay then
    answer = 'L' .. as_it_stands
  else
    local epoch = math.max((stored and stored.epoch or 0) + 1, top + 1, incarnation)
    local goes_on = not anew and (held or live)
    local kept = goes_on and live
    local carries = (goes_on and base > 0) or (not goes_on and base == 0)
    local fence = epoch
    if held and not anew then
      fence = kept and stored.fence or held_epoch
    elseif kept and stored.owner == owner and owner ~= NOBODY then
      fence = stored.fence
    end
    if kept and not carries then
      redis.call('SETRANGE', key, 0,
        header(stored.flags, stored.version, epoch, stored.position, incarnation, now, writer, owner, fence))
    else
      if kept then ephemeral = stored.ephemeral and 1 or 0 end
      local flags, data = LIVE + ephemeral * EPHEMERAL, ''
      if carries and blob == 1 then
        flags, data = flags + BLOB, string.sub(ARGV[2 * i], size)
      end
      redis.call('SET', key,
        header(flags, version, epoch, carries and carried or 0, incarnation, now, writer, owner, fence) .. data)
      if not stored or not stored.live then redis.call('ZADD', index, 0, member) end
      if stored and not stored.live then redis.call('ZREM', tombs, member) end
    end
    if goes_on and not held then
      answer = 'T' .. redis.call('GET', key)
    else
      answer = (goes_on and 'H' or 'C') .. redis.call('GETRANGE', key, 0, SIZE - 1)
    end
  end
  answers[i] = answer
end
return answers
"""

_SAVE = """
local answers = {}
for i = 1, #KEYS - 2 do
  local key, member, value = KEYS[i + 2], ARGV[2 * i - 1], ARGV[2 * i]
  local stored = read(key)
  local ok = true
  if stored then
    local _, flags, version, epoch, position, incarnation, now, writer, owner = struct.unpack(HEADER, value)
    if not stored.live then
      ok = stored.epoch < epoch
    elseif stored.epoch > epoch then
      ok = stored.fence <= epoch and stored.position <= position
      if ok then
        value = header(flags, version, stored.epoch, position, stored.incarnation, now, stored.writer, stored.owner,
          stored.fence) .. string.sub(value, SIZE + 1)
      end
    elseif stored.epoch == epoch then
      ok = stored.position <= position
      if ok and stored.fence ~= epoch then
        value = header(flags, version, epoch, position, incarnation, now, writer, owner, stored.fence)
          .. string.sub(value, SIZE + 1)
      end
    end
  end
  if ok then
    redis.call('SET', key, value)
    if not stored or not stored.live then redis.call('ZADD', index, 0, member) end
    if stored and not stored.live then redis.call('ZREM', tombs, member) end
  end
  answers[i] = ok and '1' or '0'
end
return table.concat(answers)
"""

_DELETE = """
local now, NOBODY = tonumber(ARGV[1]), string.rep('\\0', 16)
local answers = {}
for i = 1, #KEYS - 2 do
  local key, member = KEYS[i + 2], ARGV[2 * i]
  local epoch, incarnation = struct.unpack('<I8I8', ARGV[2 * i + 1])
  local stored = read(key)
  local live = stored and stored.live
  local old = stored or {version = 0, epoch = 0, position = 0, incarnation = 0, writer = NOBODY, owner = NOBODY}
  local stays = old.unknown or (live and old.fence > epoch)
    or (stored and not live and old.epoch >= epoch and old.incarnation >= incarnation)
  if not stays then
    local last = math.max(old.epoch, epoch)
    redis.call('SET', key, header(0, old.version, last, old.position,
      math.max(old.incarnation, incarnation), now, old.writer, old.owner, last))
    redis.call('ZREM', index, member)
    redis.call('ZADD', tombs, now, member)
  end
  answers[i] = (live and not stays) and '1' or '0'
end
return table.concat(answers)
"""

# Looks at members that were read before; what was claimed or saved since is young, and stays.
_EXPIRE = """
local before, ephemeral_before, tombs_before = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local models = cjson.decode(ARGV[4])
local count = 0
for i = 1, #KEYS - 2 do
  local key, member = KEYS[i + 2], ARGV[i + 4]
  local stored = read(key)
  local last = models[string.match(member, '^[^%z]*%z([^%z]*)%z')] or before
  if stored and not stored.live then
    last = tombs_before
  elseif stored and stored.ephemeral then
    last = ephemeral_before
  end
  if stored and stored.saved_at < last then
    redis.call('UNLINK', key)
    count = count + 1
    stored = nil
  end
  if not stored then
    redis.call('ZREM', index, member)
    redis.call('ZREM', tombs, member)
  end
end
return count
"""


_TOUCH = """
local now = tonumber(ARGV[1])
for i = 1, #KEYS - 2 do
  local key = KEYS[i + 2]
  local epoch = struct.unpack('<I8', ARGV[2 * i + 1])
  local stored = read(key)
  if stored and stored.live and stored.fence <= epoch then
    redis.call('SETRANGE', key, 0,
      header(stored.flags, stored.version, stored.epoch, stored.position, stored.incarnation, now, stored.writer,
        stored.owner, stored.fence))
  end
end
return string.rep('1', #KEYS - 2)
"""


_FORGET = """
local count = 0
for i = 1, #KEYS - 2 do
  local key, member = KEYS[i + 2], ARGV[i]
  local stored = read(key)
  if stored and not stored.live and not stored.unknown then
    redis.call('UNLINK', key)
    redis.call('ZREM', tombs, member)
    redis.call('ZREM', index, member)
    count = count + 1
  end
end
return count
"""


class Script(NamedTuple):
    """A script and the digest under which Redis keeps it."""

    text: str
    digest: str


def _script(body: str) -> Script:
    text = _PRELUDE + body
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


CLAIM = _script(_CLAIM)
"""ARGV: for each record its member and the packed claim, its blob behind. Answers, for each: a letter, the record."""
SAVE = _script(_SAVE)
"""ARGV: for each record its member and its value. Answers a string of 1 (written) and 0 (fenced)."""
DELETE = _script(_DELETE)
"""ARGV: the time, then for each record its member, and epoch and incarnation packed. Answers a string of 1 and 0."""
EXPIRE = _script(_EXPIRE)
"""ARGV: the three times, those of models in JSON, then the members. Answers how many records and tombstones went."""
TOUCH = _script(_TOUCH)
"""ARGV: the time, then for each record its member, and the epoch packed. Answers nothing of interest."""
FORGET = _script(_FORGET)
"""ARGV: the members. Answers how many tombstones went."""
SCRIPTS = (CLAIM, SAVE, DELETE, EXPIRE, TOUCH, FORGET)
