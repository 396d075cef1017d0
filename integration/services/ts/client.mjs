// What a program does with the ingress client of the TypeScript SDK: each part of its interface once. Prints one line of
// JSON that the test compares.
//
//   node client.mjs INGRESS-URL PREFIX TOKEN
import { connect, rpc, HttpCallError, SendOpts } from "@restatedev/restate-sdk-clients";

const [url, prefix, token] = process.argv.slice(2);
const named = (name) => ({ name: prefix + name });
const ingress = connect({ url, headers: { "x-client": "ts" }, retry: { maxAttempts: 3, initialInterval: 50 } });
const failure = async (promise) => {
  try {
    return { output: await promise };
  } catch (e) {
    if (!(e instanceof HttpCallError)) throw e;
    return { status: e.status, body: JSON.parse(e.responseText) };
  }
};
const out = {};

const greeter = ingress.serviceClient(named("Greeter"));
out.call = await greeter.greet("Ada");
out.header = (await greeter.headers(undefined, rpc.opts({ headers: { "x-call": "yes" } })))["x-client"];
const counter = ingress.objectClient(named("Counter"), token);
out.idempotent = [
  await counter.add(1, rpc.opts({ idempotencyKey: token })),
  await counter.add(1, rpc.opts({ idempotencyKey: token })),
  await counter.get(),
];
const sent = await ingress.serviceSendClient(named("Greeter")).greet("Bob", rpc.sendOpts({ idempotencyKey: token, delay: 50 }));
const again = await ingress.serviceSendClient(named("Greeter")).greet("Bob", SendOpts.from({ idempotencyKey: token }));
out.sent = [sent.status, again.status, again.invocationId === sent.invocationId, sent.attachable];
out.attached = await ingress.result(sent);
await ingress.objectSendClient(named("Counter"), token + "-sent").add(5);
out.failure = await failure(ingress.serviceClient(named("Failing")).terminal({ code: 418, message: "teapot", metadata: { a: "b" } }));
out.unknown = await failure(ingress.serviceClient(named("Nothing")).call());

const flow = ingress.workflowClient(named("Flow"), token);
const submitted = await flow.workflowSubmit("in");
const resubmitted = await flow.workflowSubmit("other");
out.submitted = [submitted.status, resubmitted.status];
out.early = (await flow.workflowOutput()).ready;
await flow.finish("v");
out.result = await flow.workflowAttach();
out.output = await flow.workflowOutput();
out.submission = await ingress.result(submitted);

const awaiter = ingress.objectClient(named("Awaiter"), token);
const rejecting = ingress.objectClient(named("Awaiter"), token + "-rejected");
const awakeable = async (client) => {
  for (;;) {
    const id = await client.id();
    if (id) return id;
    await new Promise((r) => setTimeout(r, 20));
  }
};
const held = awaiter.hold();
await ingress.resolveAwakeable(await awakeable(awaiter), "it");
out.resolved = await held;
const refused = rejecting.hold();
await ingress.rejectAwakeable(await awakeable(rejecting), "no");
out.rejected = await refused;

out.generic = new TextDecoder().decode(
  await ingress.call({ service: prefix + "Greeter", handler: "echo", parameter: new TextEncoder().encode("bytes"), opts: rpc.opts({ input: binary(), output: binary() }) }),
);
out.genericSend = (await ingress.send({ service: prefix + "Counter", key: token + "-sent", handler: "add", parameter: 1 })).status;
out.scoped = (await failure(ingress.scope("s").serviceClient(named("Greeter")).greet("x"))).body.message;

function binary() {
  return { contentType: "application/octet-stream", serialize: (v) => v, deserialize: (v) => v };
}
console.log(JSON.stringify(out));
