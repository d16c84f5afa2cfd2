"""The ledger of budgets in Redis, for workers on several machines. Every change is one Lua script, so one step.

A worker shows that it lives with every exchange. One that has not for `lease_s` is taken to have spent all that it was
allowed; should it come back, or its journal be found, that is put right by what it really spent. Redis must write what
it is told to its disk (`appendonly yes`): a Redis that forgets, forgets what was spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from potstill.serving.ledger import KEPT_DAYS, SHARE, Claim, LedgerAway, Standing

if TYPE_CHECKING:
    from redis import Redis

_PREFIX = "potstill:{budgets}:"
# Whole numbers up to 2^53 are exact in Lua; "%.0f" writes all their digits.
_COMMON = """
local prefix = KEYS[1]
local function whole(n) return string.format('%.0f', n + 0) end  -- + 0: or zero may be written -0
local function clock() local t = redis.call('TIME'); return t[1] * 1000 + math.floor(t[2] / 1000) end
local function add(account, field, n)
  local key = prefix .. 'account:' .. account
  local total = tonumber(redis.call('HINCRBY', key, field, whole(n)))
  if string.match(account, ':%d%d%d%d%-%d%d%-%d%d$') then redis.call('EXPIRE', key, KEPT_S) end
  return total
end
local function lease_of(worker, account)
  local found = redis.call('HGET', prefix .. 'lease:' .. worker, account)
  if not found then return nil end
  local slot, allowed, reported, assumed = string.match(found, '(%S+) (%S+) (%S+) (%S+)')
  return {slot = slot, allowed = tonumber(allowed), reported = tonumber(reported), assumed = tonumber(assumed)}
end
local function put(worker, account, lease)
  redis.call('HSET', prefix .. 'lease:' .. worker, account,
    lease.slot .. ' ' .. whole(lease.allowed) .. ' ' .. whole(lease.reported) .. ' ' .. whole(lease.assumed))
end
""".replace("KEPT_S", str(KEPT_DAYS * 86400))
_EXCHANGE = (
    _COMMON
    + """
local worker, number, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local numbers = prefix .. 'number:' .. worker
if tonumber(redis.call('GET', numbers) or '-1') >= number then return false end
redis.call('SET', numbers, whole(number), 'PX', 86400000 + lease_ms)
redis.call('ZADD', prefix .. 'beats', clock() + lease_ms, worker)
local told = {}
for at = 4, #ARGV, 8 do
  local account, slot, limit = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local spent_by, keeps, need = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local extra, closes = tonumber(ARGV[at + 6]), ARGV[at + 7] == '1'
  local lease = lease_of(worker, account) or {slot = slot, allowed = 0, reported = 0, assumed = 0}
  local spent = add(account, 'spent', spent_by - lease.reported - lease.assumed)
  local others = add(account, 'reserved', -lease.allowed)
  local given = 0
  if closes then
    redis.call('HDEL', prefix .. 'lease:' .. worker, account)
  else
    local free = math.max(0, limit - spent - others - keeps)
    given = math.min(need, free)
    given = given + math.min(extra, math.floor((free - given) / SHARE))
    others = add(account, 'reserved', keeps + given)
    put(worker, account, {slot = slot, allowed = keeps + given, reported = spent_by, assumed = 0})
  end
  told[#told + 1] = whole(given); told[#told + 1] = whole(spent); told[#told + 1] = whole(others)
end
return told
""".replace("SHARE", str(SHARE))
)
# ARGV: the worker, then account, held and spent of each account that its journal knows; others count in full.
_SETTLE_DEAD = (
    _COMMON
    + """
local worker = ARGV[1]
local known = {}
for at = 2, #ARGV, 3 do known[ARGV[at]] = {tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])} end
for _, account in ipairs(redis.call('HKEYS', prefix .. 'lease:' .. worker)) do
  local lease = lease_of(worker, account)
  local truth = known[account] or {lease.allowed + lease.assumed, lease.reported}
  add(account, 'spent', truth[2] - lease.reported + truth[1] - lease.assumed)
  add(account, 'reserved', -lease.allowed)
end
redis.call('DEL', prefix .. 'lease:' .. worker)
redis.call('ZREM', prefix .. 'beats', worker)
redis.call('SET', prefix .. 'number:' .. worker, '9007199254740992', 'PX', 86400000)
return 1
"""
)
_SETTLE_LOST = (
    _COMMON
    + """
local now = clock()
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'beats', '-inf', now)) do
  for _, account in ipairs(redis.call('HKEYS', prefix .. 'lease:' .. worker)) do
    local lease = lease_of(worker, account)
    add(account, 'spent', lease.allowed)
    add(account, 'reserved', -lease.allowed)
    lease.assumed = lease.assumed + lease.allowed
    lease.allowed = 0
    put(worker, account, lease)
  end
  redis.call('EXPIRE', prefix .. 'lease:' .. worker, KEPT_S)
  redis.call('ZREM', prefix .. 'beats', worker)
end
return 1
""".replace("KEPT_S", str(KEPT_DAYS * 86400))
)


class RedisLedger:
    """Used by one thread; `client` is a blocking one with a timeout."""

    def __init__(self, client: Redis, lease_s: float) -> None:
        self._client: Any = client  # redis-py types one reply for both of its clients
        self._lease_ms = int(lease_s * 1000)
        self._exchange = self._client.register_script(_EXCHANGE)
        self._settle_dead = self._client.register_script(_SETTLE_DEAD)
        self._settle_lost = self._client.register_script(_SETTLE_LOST)

    def exchange(self, worker: str, number: int, claims: Sequence[Claim]) -> list[Standing]:
        words: list[str | int] = [worker, number, self._lease_ms]
        for each in claims:
            words += [
                each.account,
                each.slot,
                each.limit,
                each.spent,
                each.keeps,
                each.need,
                each.extra,
                int(each.closes),
            ]
        with _told():
            told = self._exchange([_PREFIX], words)
        if told is None:
            raise LedgerAway(f"exchange {number} of {worker} came late")
        return [Standing(*(int(each) for each in told[at : at + 3])) for at in range(0, len(told), 3)]

    def settle_dead(self, worker: str, words: Sequence[int] | None) -> None:
        with _told():
            found: dict[bytes, bytes] = self._client.hgetall(f"{_PREFIX}lease:{worker}")
            known: list[str | int] = [worker]
            for account, lease in found.items() if words is not None else ():
                assert words is not None
                slot = int(lease.split()[0])
                known += [account.decode(), words[2 * slot], words[2 * slot + 1]]
            self._settle_dead([_PREFIX], known)

    def settle_lost(self, living: Callable[[], set[str]]) -> None:
        """By their time: whose journals are elsewhere cannot be known here."""
        with _told():
            self._settle_lost([_PREFIX], [])

    def standing(self, account: str) -> tuple[int, int]:
        """What has been spent of an account, and what workers are allowed of it now."""
        with _told():
            spent, reserved = self._client.hmget(f"{_PREFIX}account:{account}", "spent", "reserved")
        return int(spent or 0), int(reserved or 0)

    def close(self) -> None:
        self._client.close()


@contextmanager
def _told() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError, ValueError) as fault:
        # The client's own words may hold the address, and that its password.
        raise LedgerAway(f"Redis: {type(fault).__name__}") from None
