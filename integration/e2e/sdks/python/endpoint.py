"""The services of this suite with the Python SDK. What each handler does is written in ../doc.go."""

import asyncio
import json
import os
from collections import Counter, defaultdict
from datetime import timedelta

import hypercorn.asyncio
import hypercorn.config
import restate
from restate import (
    Context,
    InvocationRetryPolicy,
    ObjectContext,
    ObjectSharedContext,
    RunOptions,
    Service,
    TerminalError,
    VirtualObject,
    Workflow,
    WorkflowContext,
    WorkflowSharedContext,
)

FAST = InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=20),
    max_interval=timedelta(milliseconds=200),
    exponentiation_factor=2.0,
    max_attempts=1000,
)

svc = Service("Svc", invocation_retry_policy=FAST)
obj = VirtualObject("Obj", invocation_retry_policy=FAST)
flow = Workflow("Flow", invocation_retry_policy=FAST)

attempts = Counter()  # by token; of this process, on purpose not durable
drawn = defaultdict(list)


def ms(n):
    return timedelta(milliseconds=n)


def retries(limit=None):
    return RunOptions(initial_retry_interval=ms(10), max_retry_interval=ms(20), max_attempts=limit)


def fails(token, times):
    """Fails the first times that it is called with the token, then returns how often it was."""
    attempts[token] += 1
    if attempts[token] <= times:
        raise ValueError("not yet")
    return attempts[token]


@svc.handler()
async def greet(ctx: Context, name: str) -> str:
    return f"Hello, {name}!"


@svc.handler()
async def nothing(ctx: Context) -> None:
    return None


@svc.handler()
async def echo(ctx: Context, text: str) -> str:
    return text


@svc.handler()
async def double(ctx: Context, n: int) -> int:
    return 2 * n


@svc.handler()
async def fail(ctx: Context, how: dict) -> str:
    raise TerminalError(how["message"], status_code=how["code"])


@svc.handler()
async def retry(ctx: Context, token: str) -> int:
    return fails(token, 2)


@svc.handler()
async def run(ctx: Context, token: str) -> int:
    return await ctx.run_typed("flaky", fails, retries(), token, 2)


@svc.handler()
async def exhaust(ctx: Context, token: str) -> str:
    try:
        await ctx.run_typed("hopeless", fails, retries(3), token, 1000)
    except TerminalError as e:
        return f"{e.status_code} after {attempts[token]}"
    return "succeeded"


@svc.handler()
async def runTerminal(ctx: Context, token: str) -> str:
    def step():
        attempts[token] += 1
        raise TerminalError("teapot", status_code=418)

    try:
        await ctx.run_typed("terminal", step)
    except TerminalError as e:
        return f"{e.status_code} {e.message} after {attempts[token]}"
    return "succeeded"


@svc.handler()
async def steps(ctx: Context, n: int) -> int:
    total = 0
    for i in range(n):
        total += await ctx.run_typed("step", lambda i=i: i)
    return total


@svc.handler()
async def sleep(ctx: Context, n: int) -> str:
    await ctx.sleep(ms(n))
    return "slept"


@svc.handler()
async def race(ctx: Context, n: int) -> str:
    _, never = ctx.awakeable(type_hint=str)
    who, _ = await restate.select(never=never, sleep=ctx.sleep(ms(n)), hour=ctx.sleep(timedelta(hours=1)))
    return who


@svc.handler()
async def gather(ctx: Context, n: int) -> int:
    calls = [ctx.service_call(double, i) for i in range(n)]
    return sum([await f for f in await restate.gather(*calls)])


@svc.handler()
async def order(ctx: Context, delays: list[int]) -> list[int]:
    waits = {ctx.sleep(ms(n)): n for n in delays}
    return [waits[f] async for f in restate.as_completed(*waits)]


@svc.handler()
async def random(ctx: Context, token: str) -> bool:
    drawn[token].append((str(ctx.uuid()), ctx.random().random()))
    await ctx.run_typed("recorded", lambda: 1)
    fails(token, 1)
    return len(drawn[token]) > 1 and len(set(drawn[token])) == 1


@svc.handler()
async def awake(ctx: Context, box: str) -> str:
    name, value = ctx.awakeable(type_hint=str)
    ctx.object_send(put, box, {"name": "id", "value": name})
    try:
        return await value
    except TerminalError as e:
        return f"{e.status_code} {e.message}"


@svc.handler()
async def resolve(ctx: Context, what: dict) -> None:
    ctx.resolve_awakeable(what["id"], what["value"])


@svc.handler()
async def reject(ctx: Context, what: dict) -> None:
    ctx.reject_awakeable(what["id"], what["value"])


@svc.handler()
async def calls(ctx: Context, key: str) -> list[int]:
    first = await ctx.object_call(add, key, 1)
    ctx.object_send(add, key, 10)
    second = await ctx.object_call(add, key, 100)
    return [first["new"], second["new"]]


@svc.handler()
async def later(ctx: Context, what: dict) -> str:
    handle = ctx.object_send(add, what["key"], 1, send_delay=ms(what["ms"]))
    return await handle.invocation_id()


@svc.handler()
async def block(ctx: Context, key: str) -> None:
    _, never = ctx.awakeable(type_hint=str)
    try:
        await never
    except TerminalError:
        await ctx.object_call(add, key, 7)
        raise


@svc.handler()
async def cancelOther(ctx: Context, key: str) -> int:
    handle = ctx.service_send(block, key)
    other = await handle.invocation_id()
    await ctx.sleep(ms(20))
    ctx.cancel_invocation(other)
    try:
        await ctx.attach_invocation(other, type_hint=str)
    except TerminalError as e:
        return e.status_code
    return 0


@svc.handler()
async def attach(ctx: Context, other: str) -> str:
    return await ctx.attach_invocation(other, type_hint=str)


@svc.handler()
async def once(ctx: Context, token: str) -> int:
    return await ctx.run_typed("count", fails, retries(), token, 0)


@svc.handler()
async def idempotent(ctx: Context, token: str) -> list[int]:
    return [await ctx.service_call(once, token, idempotency_key=token) for _ in range(2)]


@svc.handler()
async def header(ctx: Context) -> str:
    return ctx.request().headers.get("x-a", "")


@svc.handler()
async def forward(ctx: Context) -> str:
    return await ctx.service_call(header, None, headers={"x-a": "b"})


@svc.handler()
async def generic(ctx: Context, key: str) -> int:
    return json.loads(await ctx.generic_call("Obj", "add", b"5", key=key))["new"]


@svc.handler()
async def waitSignal(ctx: Context, box: str) -> str:
    ctx.object_send(put, box, {"name": "id", "value": ctx.request().id})
    try:
        return await ctx.signal("go", type_hint=str)
    except TerminalError as e:
        return f"{e.status_code} {e.message}"


@svc.handler()
async def sendSignal(ctx: Context, what: dict) -> None:
    if what["value"] == "reject":
        ctx.reject_signal(what["id"], "go", "no")
    else:
        ctx.resolve_signal(what["id"], "go", what["value"])


@svc.handler()
async def idempotencyKey(ctx: Context) -> str:
    return ctx.request().idempotency_key or ""


@svc.handler()
async def long(ctx: Context, what: dict) -> int:
    last = 0
    for i in range(what["n"]):
        await ctx.run_typed("step", lambda i=i: i)
        last = (await ctx.object_call(add, what["key"], 1))["new"]
        await ctx.sleep(ms(5))
    return last


@obj.handler()
async def add(ctx: ObjectContext, n: int) -> dict:
    old = await ctx.get("n", type_hint=int) or 0
    ctx.set("n", old + n)
    return {"old": old, "new": old + n}


@obj.handler()
async def slowAdd(ctx: ObjectContext, n: int) -> int:
    old = await ctx.get("n", type_hint=int) or 0
    await ctx.sleep(ms(1))
    new = await ctx.run_typed("sum", lambda: old + n)
    ctx.set("n", new)
    return new


@obj.handler(kind="shared")
async def get(ctx: ObjectSharedContext) -> int:
    return await ctx.get("n", type_hint=int) or 0


@obj.handler()
async def put(ctx: ObjectContext, what: dict) -> None:
    ctx.set(what["name"], what["value"])


@obj.handler(kind="shared")
async def read(ctx: ObjectSharedContext, name: str) -> str:
    value = await ctx.get(name, type_hint=str)
    return "none" if value is None else value


@obj.handler()
async def clear(ctx: ObjectContext, name: str) -> None:
    ctx.clear(name)


@obj.handler()
async def clearAll(ctx: ObjectContext) -> None:
    ctx.clear_all()


@obj.handler(kind="shared")
async def keys(ctx: ObjectSharedContext) -> list[str]:
    return sorted(await ctx.state_keys())


@obj.handler()
async def within(ctx: ObjectContext) -> list[str]:
    ctx.set("a", "1")
    ctx.set("b", "2")
    ctx.clear("a")
    seen = [await ctx.get("a", type_hint=str) or "none", await ctx.get("b", type_hint=str) or "none"]
    ctx.clear_all()
    return [*seen, *await ctx.state_keys()]


@flow.main(name="run")
async def flow_run(ctx: WorkflowContext, text: str) -> str:
    ctx.set("status", "waiting")
    value = await ctx.promise("go", type_hint=str)
    ctx.set("status", "done")
    return f"{text}:{value}"


@flow.handler(name="resolve")
async def flow_resolve(ctx: WorkflowSharedContext, value: str) -> None:
    await ctx.promise("go", type_hint=str).resolve(value)


@flow.handler(name="reject")
async def flow_reject(ctx: WorkflowSharedContext, reason: str) -> None:
    await ctx.promise("go", type_hint=str).reject(reason)


@flow.handler()
async def peek(ctx: WorkflowSharedContext) -> str:
    return await ctx.promise("go", type_hint=str).peek() or "none"


@flow.handler()
async def status(ctx: WorkflowSharedContext) -> str:
    return await ctx.get("status", type_hint=str) or "none"


@svc.handler()
async def workflow(ctx: Context, key: str) -> str:
    result = ctx.workflow_call(flow_run, key, "in")
    await ctx.workflow_call(flow_resolve, key, "called")
    return await result


identity = os.environ.get("IDENTITY_KEY")
app = restate.app(
    [svc, obj, flow],
    protocol="request_response" if os.environ.get("MODE") == "rr" else "bidi",
    identity_keys=[identity] if identity else None,
)

config = hypercorn.config.Config()
config.bind = [f"127.0.0.1:{os.environ['PORT']}"]
config.h2_max_concurrent_streams = 1 << 16
asyncio.run(hypercorn.asyncio.serve(app, config))
