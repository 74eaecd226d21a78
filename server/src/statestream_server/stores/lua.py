"""The rules of rules.py in Lua, as Redis runs them. Each script touches keys of one bucket only.

A bucket has an index (sorted set of live members by name), a set of tombstones (sorted set of members by
time) and its records (strings, see packed.py). KEYS are index, tombstones, then the records; a member is
tenant, model and id, separated by zero bytes. A record of a format that is not known here stays as it is.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

_PRELUDE = """
local FORMAT, SIZE, HEADER = 2, 80, '<BBxxxxxxI8I8I8I8dc16c16'
local LIVE, EPHEMERAL, BLOB = 1, 2, 4
local index, tombs = KEYS[1], KEYS[2]

local function read(key)
  local text = redis.call('GETRANGE', key, 0, SIZE - 1)
  if text == '' then return nil end
  if #text < SIZE or string.byte(text) ~= FORMAT then
    -- Above every epoch and younger than every time: nothing is written over it, and it does not expire.
    return {unknown = true, live = false, epoch = math.huge, saved_at = math.huge}
  end
  local r = {text = text}
  r.format, r.flags, r.version, r.epoch, r.position, r.incarnation, r.saved_at, r.writer, r.owner =
    struct.unpack(HEADER, text)
  r.live = r.flags % 2 == 1
  r.ephemeral = r.flags % 4 >= EPHEMERAL
  return r
end

local function header(flags, version, epoch, position, incarnation, saved_at, writer, owner)
  return struct.pack(HEADER, FORMAT, flags, version, epoch, position, incarnation, saved_at, writer, owner)
end
"""

_CLAIM = """
local CREATE, RESUME, REPLACE = 1, 2, 4
local answers = {}
for i = 1, #KEYS - 2 do
  local key, member = KEYS[i + 2], ARGV[2 * i - 1]
  local mode, ephemeral, exact, incarnation, seen, replay, held_epoch, held_position, version, now, writer, owner =
    struct.unpack('<BBBxxxxxI8I8I8I8I8I8dc16c16', ARGV[2 * i])
  local stored = read(key)
  local top = math.max(held_epoch, seen)
  local live = stored and stored.live and stored.epoch >= top
  local as_it_stands = live and stored.text or ''
  local over = not stored or (stored.live and stored.epoch <= held_epoch)
  local held = held_epoch > 0 and held_epoch == top and over
  local current = held and held_position or (live and stored.position or 0)
  local answer
  if stored and stored.unknown then
    answer = 'U'
  elseif stored and incarnation < stored.incarnation then
    answer = 'R' .. stored.text
  elseif mode == CREATE and (live or held) then
    answer = 'E' .. as_it_stands
  elseif mode == RESUME and not live and not held then
    answer = 'M'
  elseif exact == 1 and mode ~= REPLACE and live and not held and stored.version ~= version then
    answer = 'O' .. as_it_stands
  elseif mode ~= REPLACE and current < replay then
    answer = 'L' .. as_it_stands
  else
    local epoch = math.max((stored and stored.epoch or 0) + 1, top + 1, incarnation)
    if live and mode ~= REPLACE then
      redis.call('SETRANGE', key, 0,
        header(stored.flags, stored.version, epoch, stored.position, incarnation, now, writer, owner))
      if held then
        answer = 'H' .. redis.call('GETRANGE', key, 0, SIZE - 1)
      else
        answer = 'T' .. redis.call('GET', key)
      end
    else
      local fresh = header(LIVE + ephemeral * EPHEMERAL, version, epoch, 0, incarnation, now, writer, owner)
      redis.call('SET', key, fresh)
      if not stored or not stored.live then redis.call('ZADD', index, 0, member) end
      if stored and not stored.live then redis.call('ZREM', tombs, member) end
      answer = ((held and mode ~= REPLACE) and 'H' or 'C') .. fresh
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
    local _, _, _, epoch, position = struct.unpack(HEADER, value)
    ok = stored.epoch < epoch or (stored.live and stored.epoch == epoch and stored.position <= position)
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
  local stays = old.unknown or (live and old.epoch > epoch)
    or (stored and not live and old.epoch >= epoch and old.incarnation >= incarnation)
  if not stays then
    redis.call('SET', key, header(0, old.version, math.max(old.epoch, epoch), old.position,
      math.max(old.incarnation, incarnation), now, old.writer, old.owner))
    redis.call('ZREM', index, member)
    redis.call('ZADD', tombs, now, member)
  end
  answers[i] = (live and not stays) and '1' or '0'
end
return table.concat(answers)
"""

# Looks at members that were read before; what was claimed or saved since is young, and stays.
_EXPIRE = """
local before, ephemeral_before = tonumber(ARGV[1]), tonumber(ARGV[2])
local count = 0
for i = 1, #KEYS - 2 do
  local key, member = KEYS[i + 2], ARGV[i + 2]
  local stored = read(key)
  if stored and stored.saved_at < ((stored.live and stored.ephemeral) and ephemeral_before or before) then
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


class Script(NamedTuple):
    """A script and the digest under which Redis keeps it."""

    text: str
    digest: str


def _script(body: str) -> Script:
    text = _PRELUDE + body
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


CLAIM = _script(_CLAIM)
"""ARGV: for each record its member and the packed claim. Answers, for each: one letter, then the record."""
SAVE = _script(_SAVE)
"""ARGV: for each record its member and its value. Answers a string of 1 (written) and 0 (fenced)."""
DELETE = _script(_DELETE)
"""ARGV: the time, then for each record its member, and epoch and incarnation packed. Answers a string of 1 and 0."""
EXPIRE = _script(_EXPIRE)
"""ARGV: the two times, then the members. Answers how many records and tombstones went."""
SCRIPTS = (CLAIM, SAVE, DELETE, EXPIRE)
