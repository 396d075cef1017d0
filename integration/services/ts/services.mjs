// The test services of the Go package perdure/integration/services, written with the TypeScript SDK: same service
// names, handlers, inputs and outputs. See the package comment there.
//
//   node services.mjs --port 0 --prefix Ts --mode bidi|rr [--http1] [--lazy] [--suspend]
//
// Prints "listening <port>" once it serves.
import * as http from "node:http";
import * as http2 from "node:http2";
import { parseArgs } from "node:util";

// The SDK wants Node 22; this is all that Node 20 lacks for it.
Promise.withResolvers ??= function () {
  let resolve, reject;
  const promise = new this((res, rej) => ([resolve, reject] = [res, rej]));
  return { promise, resolve, reject };
};
const restate = await import("@restatedev/restate-sdk");
const { TerminalError, RetryableError } = restate;
const { exclusive, shared } = restate.handlers.object;

const { values: flags } = parseArgs({
  options: {
    port: { type: "string", default: "0" },
    prefix: { type: "string", default: "" },
    mode: { type: "string", default: "bidi" },
    http1: { type: "boolean", default: false },
    lazy: { type: "boolean", default: false },
    suspend: { type: "boolean", default: false },
  },
});
const named = (n) => flags.prefix + n;

// --- what only the endpoint can see

const counts = new Map();
const lines = new Map();
const gates = new Map();
const count = (token) => {
  counts.set(token, (counts.get(token) ?? 0) + 1);
  return counts.get(token);
};
const counted = (token) => counts.get(token) ?? 0;
const note = (token, line) => lines.set(token, [...(lines.get(token) ?? []), line]);
const gate = (token) => {
  if (!gates.has(token)) gates.set(token, { open: false, ...Promise.withResolvers() });
  return gates.get(token);
};
const open = (token) => {
  const g = gate(token);
  g.open = true;
  g.resolve();
};

// --- helpers

const terminal = ({ code, message, metadata }) => new TerminalError(message, { errorCode: code, metadata });
const caught = (e) => {
  if (!(e instanceof TerminalError)) throw e;
  const metadata = e.metadata && Object.keys(e.metadata).length > 0 ? { metadata: e.metadata } : {};
  return { code: e.code, message: e.message, ...metadata };
};
const fastRetries = { initialInterval: 20, maxInterval: 200, exponentiationFactor: 2, maxAttempts: 1000 };
const base = { ...(flags.suspend ? { inactivityTimeout: 0 } : {}) };
const keyed = { ...base, ...(flags.lazy ? { enableLazyState: true } : {}) };
const json = (v) => (v === undefined ? new Uint8Array() : new TextEncoder().encode(JSON.stringify(v)));
const parse = (b) => (b.length === 0 ? null : JSON.parse(new TextDecoder().decode(b)));

const target = (t) => ({
  service: t.service,
  method: t.handler,
  key: t.key || undefined,
  parameter: json(t.input),
  idempotencyKey: t.idempotencyKey || undefined,
  headers: t.headers,
});
const outcome = async (promise) => {
  try {
    return { output: parse(await promise) };
  } catch (e) {
    return { failure: caught(e) };
  }
};
const held = async (promise) => {
  try {
    return { output: await promise };
  } catch (e) {
    return { failure: caught(e) };
  }
};

// --- services

const greeter = restate.service({
  name: named("Greeter"),
  options: base,
  handlers: {
    greet: async (_, name) => `Hello, ${name}!`,
    echo: restate.handlers.handler({ input: restate.serde.binary, output: restate.serde.binary }, async (_, b) => b),
    headers: async (ctx) => Object.fromEntries(ctx.request().headers),
    id: async (ctx) => ctx.request().id,
    blob: async (_, n) => "x".repeat(n),
    length: async (_, s) => s.length,
    nothing: async () => {},
  },
});

const always = async (_, token) => {
  count(token);
  if (gate(token).open) return "recovered";
  throw new Error(`still failing: ${token}`);
};
const twice = (onMaxAttempts) => ({ retryPolicy: { initialInterval: 20, maxAttempts: 2, onMaxAttempts } });

const failing = restate.service({
  name: named("Failing"),
  options: { ...base, retryPolicy: fastRetries },
  handlers: {
    terminal: async (_, f) => {
      throw terminal(f);
    },
    transient: async (_, { token, failures }) => {
      const n = count(token);
      if (n <= failures) throw new Error(`attempt ${n} fails`);
      return n;
    },
    pausing: restate.handlers.handler(twice("pause"), always),
    killing: restate.handlers.handler(twice("kill"), always),
    retrying: always,
    caught: async (ctx, f) => {
      const r = await outcome(ctx.genericCall(target({ service: named("Failing"), handler: "terminal", input: f })));
      if (!r.failure) throw new TerminalError("the call succeeded");
      return r.failure;
    },
  },
});

const add = async (ctx, d) => {
  const n = (await ctx.get("count")) ?? 0;
  ctx.set("count", n + d);
  return { old: n, new: n + d };
};

const counter = restate.object({
  name: named("Counter"),
  options: { ...keyed, retryPolicy: fastRetries },
  handlers: {
    add,
    get: shared(async (ctx) => (await ctx.get("count")) ?? 0),
    keys: shared(async (ctx) => ctx.stateKeys()),
    put: async (ctx, kv) => {
      for (const k of Object.keys(kv).sort()) ctx.set(k, kv[k]);
    },
    read: shared(async (ctx, key) => ctx.get(key)),
    clear: async (ctx, key) => ctx.clear(key),
    clearAll: async (ctx) => ctx.clearAll(),
    addFail: async (ctx, d) => {
      await add(ctx, d);
      throw terminal({ code: 418, message: "after the write" });
    },
    addRetry: async (ctx, token) => {
      const a = await add(ctx, 1);
      if (count(token) === 1) throw new Error("first attempt fails after the write");
      return a.new;
    },
    mixed: async (ctx) => {
      ctx.clearAll();
      ctx.set("b", "1");
      ctx.set("a", "2");
      ctx.clear("b");
      ctx.set("c", "3");
      for (const k of ["a", "b", "c"]) {
        if (((await ctx.get(k)) !== null) !== (k !== "b")) throw new TerminalError(`own write of ${k} is not seen`);
      }
    },
  },
});

const fast = { initialRetryInterval: 10, maxRetryInterval: 50 };
const step = (token) => () => {
  count(token);
  return `v-${token}`;
};

const runner = restate.service({
  name: named("Runner"),
  options: { ...base, retryPolicy: fastRetries },
  handlers: {
    once: async (ctx, token) => ({ value: await ctx.run("step", step(token)), executions: counted(token) }),
    flaky: async (ctx, { token, failures }) => {
      const flaky = () => {
        const n = count(token);
        if (n <= failures) throw new Error(`execution ${n} fails`);
        return `v-${token}`;
      };
      return { value: await ctx.run("flaky", flaky, fast), executions: counted(token) };
    },
    terminal: async (ctx, f) => {
      const r = await held(
        ctx.run("terminal", () => {
          throw terminal(f);
        }),
      );
      if (!r.failure) throw new TerminalError("the step succeeded");
      return r.failure;
    },
    exhausted: async (ctx, token) => {
      const failing = () => {
        throw new Error(`execution ${count(token)} fails`);
      };
      const r = await held(ctx.run("exhausted", failing, { ...fast, maxRetryAttempts: 3 }));
      if (!r.failure) throw new TerminalError("the step succeeded");
      return r.failure;
    },
    steps: async (ctx, n) => {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += await ctx.run(`step-${i}`, () => i);
      return sum;
    },
    parallel: async (ctx, n) => {
      const all = await restate.RestatePromise.all([...Array(n).keys()].map((i) => ctx.run(() => i)));
      return all.reduce((a, b) => a + b, 0);
    },
    replayed: async (ctx, token) => {
      const value = await ctx.run("step", step(token));
      if (count(`${token}/attempt`) === 1) throw new Error("first attempt fails after the step");
      return { value, executions: counted(token) };
    },
  },
});

const sleeper = restate.service({
  name: named("Sleeper"),
  options: base,
  handlers: {
    sleep: async (ctx, ms) => {
      await ctx.sleep(ms);
      return "slept";
    },
    parallel: async (ctx, ms) => (await restate.RestatePromise.all(ms.map((m) => ctx.sleep(m)))).length,
    race: async (ctx, ms) => restate.RestatePromise.race(ms.map((m, i) => ctx.sleep(m).map(() => i))),
  },
});

const caller = restate.service({
  name: named("Caller"),
  options: { ...base, retryPolicy: fastRetries },
  handlers: {
    call: async (ctx, t) => outcome(ctx.genericCall(target(t))),
    send: async (ctx, t) => ctx.genericSend({ ...target(t), delay: t.delayMs || undefined }).invocationId,
    ids: async (ctx, t) => {
      const calls = [ctx.genericCall(target(t)), ctx.genericCall(target(t))];
      const out = [];
      for (const c of calls) out.push(await c.invocationId);
      for (const c of calls) out.push(new TextDecoder().decode(await c));
      return out;
    },
    fan: async (ctx, n) => {
      const greet = (i) => ctx.genericCall(target({ service: named("Greeter"), handler: "greet", input: `${i}` }));
      return (await restate.RestatePromise.all([...Array(n).keys()].map(greet))).length;
    },
    chain: async (ctx, depth) => {
      if (depth <= 0) return 0;
      const call = target({ service: named("Caller"), handler: "chain", input: depth - 1 });
      return parse(await ctx.genericCall(call)) + 1;
    },
    sends: async (ctx, t) => {
      for (let i = 0; i < t.input; i++) {
        ctx.genericSend(target({ service: named("Counter"), key: t.key, handler: "add", input: 1 }));
      }
    },
    attach: async (ctx, id) => outcome(ctx.attach(id, restate.serde.binary)),
    cancel: async (ctx, id) => ctx.cancel(id),
  },
});

const awaiter = restate.object({
  name: named("Awaiter"),
  options: keyed,
  handlers: {
    hold: async (ctx) => {
      const { id, promise } = ctx.awakeable();
      ctx.set("id", id);
      return held(promise);
    },
    id: shared(async (ctx) => (await ctx.get("id")) ?? ""),
    resolve: shared(async (ctx, c) => ctx.resolveAwakeable(c.id, c.value)),
    reject: shared(async (ctx, c) => ctx.rejectAwakeable(c.id, c.reason)),
  },
});

const signaler = restate.service({
  name: named("Signaler"),
  options: base,
  handlers: {
    wait: async (ctx, name) => held(ctx.signal(name)),
    resolve: async (ctx, c) => ctx.invocation(c.id).signal(c.name).resolve(c.value),
    reject: async (ctx, c) => ctx.invocation(c.id).signal(c.name).reject(c.reason),
  },
});

const hold = async (_, token) => {
  note(token, "enter");
  await gate(token).promise;
  note(token, "leave");
  return "done";
};
const awaitForever = async (ctx, token) => {
  const { promise } = ctx.awakeable();
  try {
    await ctx.run(() => note(token, "enter"));
    return await promise;
  } catch (e) {
    caught(e);
    await ctx.run(() => note(token, "cleanup"));
    throw e;
  }
};

const blocker = restate.object({
  name: named("Blocker"),
  options: { ...keyed, retryPolicy: fastRetries },
  handlers: {
    hold,
    holdShared: shared(hold),
    await: awaitForever,
    free: async () => "free",
    swallow: async (ctx, token) => {
      try {
        return await awaitForever(ctx, token);
      } catch (e) {
        return `survived ${caught(e).code}`;
      }
    },
    tree: async (ctx, token) => {
      const child = (suffix) =>
        target({ service: named("Blocker"), key: `${ctx.key}-${suffix}`, handler: "await", input: `${token}/${suffix}` });
      ctx.genericSend(child("sent"));
      return parse(await ctx.genericCall(child("called")));
    },
  },
});

const fifo = restate.object({
  name: named("Fifo"),
  options: { ...keyed, retryPolicy: fastRetries },
  handlers: {
    push: async (ctx, v) => {
      const l = [...((await ctx.get("list")) ?? []), v];
      ctx.set("list", l);
      return l.length;
    },
    list: shared(async (ctx) => (await ctx.get("list")) ?? []),
    holdPush: async (ctx, token) => {
      note(token, "enter");
      await gate(token).promise;
      const l = [...((await ctx.get("list")) ?? []), token];
      ctx.set("list", l);
      return l.length;
    },
  },
});

const workflow = (name, run) =>
  restate.workflow({
    name: named(name),
    options: { ...keyed, retryPolicy: fastRetries },
    handlers: {
      run: restate.handlers.workflow.workflow(run, async (ctx, input) => {
        ctx.set("stage", "waiting");
        const v = await ctx.promise("done");
        ctx.set("stage", "done");
        return `${input}:${v}`;
      }),
      finish: async (ctx, v) => ctx.promise("done").resolve(v),
      fail: async (ctx, reason) => ctx.promise("done").reject(reason),
      peek: async (ctx) => (await ctx.promise("done").peek()) ?? null,
      await: async (ctx) => ctx.promise("done"),
      stage: async (ctx) => ctx.get("stage"),
    },
  });

// A workflow's retention is an option of the whole service in this SDK.
const briefWorkflow = workflow("BriefFlow", {});
briefWorkflow.options = { ...briefWorkflow.options, workflowRetention: 1000 };

// what is left of the SDK's interface

const extras = restate.service({
  name: named("Extras"),
  description: "what is left",
  options: { ...base, retryPolicy: fastRetries },
  handlers: {
    random: async (ctx, token) => {
      const uuid = ctx.rand.uuidv4();
      note(token, `${ctx.rand.random()} ${uuid}`);
      if (count(token) === 1) throw new RetryableError("first attempt fails", { errorCode: 501, retryAfter: 30 });
      return uuid;
    },
    timeout: async (ctx, ms) => {
      try {
        await ctx.awakeable().promise.orTimeout(ms);
        return "resolved";
      } catch (e) {
        if (!(e instanceof restate.TimeoutError)) throw e;
        return "timeout";
      }
    },
    giveUp: async (ctx, token) => {
      const failing = () => {
        throw new Error(`execution ${count(token)} fails`);
      };
      const policy = { initialRetryInterval: 20, maxRetryInterval: 50, retryIntervalFactor: 1.5, maxRetryDuration: { milliseconds: 150 } };
      const r = await held(ctx.run("giveUp", failing, policy));
      if (!r.failure) throw new TerminalError("the step succeeded");
      return r.failure;
    },
    flow: async (ctx, key) => {
      const { invocationId } = ctx.workflowSendClient({ name: named("Flow") }, key).run("in");
      await ctx.workflowClient({ name: named("Flow") }, key).finish("v");
      return outcome(ctx.invocation(await invocationId).attach(restate.serde.binary));
    },
    cancelled: async (ctx, t) => {
      const sent = ctx.invocation(await ctx.genericSend(target(t)).invocationId);
      sent.cancel();
      return outcome(sent.attach(restate.serde.binary));
    },
    key: async (ctx) => ctx.request().idempotencyKey ?? "",
    body: async (ctx) => new TextDecoder().decode(ctx.request().body),
  },
});

// what only this SDK has

const { RestatePromise } = restate;
const ending = async (promise) => {
  try {
    return await promise;
  } catch (e) {
    return `${caught(e).code} ${e.message}`;
  }
};
// three awakeables, whose ids are noted under the token
const awakeables = async (ctx, token) => {
  const all = [0, 1, 2].map(() => ctx.awakeable());
  await ctx.run("ids", () => note(token, all.map((a) => a.id).join(" ")));
  return all.map((a) => a.promise);
};
// a step in the first attempt, something else in the second
const mismatch = (onJournalMismatchErrors) =>
  restate.handlers.handler({ onJournalMismatchErrors }, async (ctx, token) => {
    if (count(token) > 1) {
      await ctx.sleep(1);
      return "slept";
    }
    await ctx.run("first", () => "ran");
    throw new Error("first attempt fails");
  });

const typescript = restate.service({
  name: named("TypeScript"),
  options: { ...base, retryPolicy: fastRetries },
  handlers: {
    combine: async (ctx, { token, how }) => {
      const [a, b, c] = await awakeables(ctx, token);
      const combined = {
        all: () => RestatePromise.all([a, b, c]),
        any: () => RestatePromise.any([a, b, c]),
        race: () => RestatePromise.race([a, b, c]),
        settled: () =>
          RestatePromise.allSettled([a, b, c]).map((l) => l.map((r) => (r.status === "fulfilled" ? r.value : r.reason.message))),
        nested: () => RestatePromise.all([RestatePromise.any([a, b]), RestatePromise.race([c, ctx.sleep({ hours: 1 })])]),
        deep: () => RestatePromise.race([RestatePromise.all([a, RestatePromise.any([b, c])]), ctx.sleep({ days: 1 }).map(() => "slept")]),
        mapped: () => RestatePromise.all([a.map((v, f) => v ?? f.message), b.map((v, f) => v ?? f.message), RestatePromise.resolve("now")]),
        rejected: () => RestatePromise.any([RestatePromise.reject(new TerminalError("at once")), a]),
      }[how];
      return ending(combined());
    },
    // a PauseError counts only where a step throws it
    pause: (ctx, token) =>
      ctx.run("try", () => {
        if (count(token) === 1) throw new restate.PauseError("wants to pause", { errorCode: 418 });
        return "resumed";
      }),
    retryAfter: async (ctx, token) => {
      if (count(token) === 1) throw new RetryableError("later", { retryAfter: { milliseconds: 400 } });
      return "done";
    },
    mismatchRetry: mismatch("retry"),
    mismatchPause: mismatch("pause"),
    mismatchFail: mismatch("fail"),
    // cancels its calls itself, and lives on
    explicit: restate.handlers.handler({ explicitCancellation: true }, async (ctx, token) => {
      const call = ctx.genericCall(target({ service: named("Blocker"), key: token, handler: "await", input: `${token}/called` }));
      await ctx.run("enter", () => note(token, "enter"));
      const first = await RestatePromise.race([ctx.cancellation().map(() => "cancelled"), call.map(() => "returned")]);
      const cancelled = await ctx.cancelPreviousCalls();
      const { failure } = await outcome(call);
      return { first, same: cancelled[0] === (await call.invocationId), cancelled: cancelled.length, code: failure.code };
    }),
    date: async (ctx) => {
      const first = await ctx.date.now();
      if (count(ctx.request().id) === 1) throw new Error("first attempt fails");
      return [first, Date.now(), JSON.parse(JSON.stringify(await ctx.date.toJSON()))];
    },
    // completes awakeables and signals with failures that have a code
    reject: async (ctx, { id, name, code, message }) => {
      const reason = new TerminalError(message, { errorCode: code });
      if (name) ctx.invocation(id).signal(name).reject(reason);
      else ctx.rejectAwakeable(id, reason);
    },
    asTerminal: restate.handlers.handler({ asTerminalError: (e) => (e instanceof RangeError ? new TerminalError(e.message, { errorCode: 416 }) : undefined) }, async () => {
      throw new RangeError("out of range");
    }),
    // calls and sends through clients that know the service
    clients: async (ctx, key) => {
      const counter = { name: named("Counter") };
      ctx.objectSendClient(counter, key).add(1, restate.rpc.sendOpts({ name: "sent" }));
      ctx.serviceSendClient({ name: named("Greeter") }).greet("nobody");
      const { new: n } = await ctx.objectClient(counter, key).add(2, restate.rpc.opts({ idempotencyKey: key }));
      return `${await ctx.serviceClient({ name: named("Greeter") }).greet("Ada", restate.rpc.opts({ headers: { a: "b" } }))} ${n}`;
    },
  },
});

const hello = async (_, name) => `hello ${name}`;

const services = [
  greeter,
  failing,
  counter,
  runner,
  sleeper,
  caller,
  awaiter,
  signaler,
  blocker,
  fifo,
  workflow("Flow", {}),
  briefWorkflow,
  extras,
  typescript,
  restate.service({
    name: named("Private"),
    options: { ...base, ingressPrivate: true },
    handlers: { hello: async (_, name) => `private hello to ${name}` },
  }),
  restate.service({
    name: named("Half"),
    options: base,
    handlers: { open: hello, closed: restate.handlers.handler({ ingressPrivate: true }, hello) },
  }),
  restate.service({
    name: named("Brief"),
    options: { ...base, idempotencyRetention: 1000, journalRetention: 0 },
    handlers: { echo: async (_, s) => s },
  }),
  restate.service({
    name: named("Probe"),
    options: base,
    handlers: {
      count: async (_, token) => counted(token),
      lines: async (_, token) => lines.get(token) ?? [],
      open: async (_, token) => open(token),
    },
  }),
];

const handler = restate.createEndpointHandler({ services, bidirectional: flags.mode === "bidi", logger: () => {} });
const server = flags.http1 ? http.createServer(handler) : http2.createServer(handler);
server.listen(Number(flags.port), "127.0.0.1", () => console.log(`listening ${server.address().port}`));
// The test that started this holds the other end of stdin: when it is gone, so is this.
process.stdin.on("end", () => process.exit(0)).resume();
