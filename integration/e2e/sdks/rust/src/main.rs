//! The services of this suite with the Rust SDK. What each handler does is written in ../../doc.go.

use restate_sdk::context::{CallFuture, DurableFuturesUnordered, RequestTarget};
use restate_sdk::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;



/// By token; of this process, on purpose not durable.
static ATTEMPTS: LazyLock<Mutex<HashMap<String, i64>>> = LazyLock::new(Default::default);
static DRAWN: LazyLock<Mutex<HashMap<String, Vec<String>>>> = LazyLock::new(Default::default);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn attempt(token: &str) -> i64 {
    let mut all = ATTEMPTS.lock().unwrap();
    let n = all.entry(token.to_owned()).or_default();
    *n += 1;
    *n
}

fn attempts(token: &str) -> i64 {
    ATTEMPTS.lock().unwrap().get(token).copied().unwrap_or_default()
}

/// Fails the first times that it is called with the token, then returns how often it was.
fn fails(token: &str, times: i64) -> HandlerResult<i64> {
    match attempt(token) {
        n if n <= times => Err("not yet".into()),
        n => Ok(n),
    }
}

fn retries() -> RunRetryPolicy {
    RunRetryPolicy::new().initial_delay(ms(10)).max_delay(ms(20))
}

#[derive(Serialize, Deserialize)]
struct Failure {
    code: u16,
    message: String,
}

#[derive(Serialize, Deserialize)]
struct Valued {
    id: String,
    value: String,
}

#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
    value: String,
}

#[derive(Serialize, Deserialize)]
struct Later {
    key: String,
    ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Long {
    key: String,
    n: i64,
}

#[derive(Serialize, Deserialize)]
struct Added {
    old: i64,
    new: i64,
}

struct Svc;

#[restate_sdk::service(
    name = "Svc",
    invocation_retry_policy(initial_interval = "20ms", factor = 2.0, max_interval = "200ms", max_attempts = 1000)
)]
impl Svc {
    #[handler]
    async fn greet(&self, _ctx: Context<'_>, name: String) -> HandlerResult<String> {
        Ok(format!("Hello, {name}!"))
    }

    #[handler]
    async fn nothing(&self, _ctx: Context<'_>) -> HandlerResult<()> {
        Ok(())
    }

    #[handler]
    async fn echo(&self, _ctx: Context<'_>, text: String) -> HandlerResult<String> {
        Ok(text)
    }

    #[handler]
    async fn double(&self, _ctx: Context<'_>, n: i64) -> HandlerResult<i64> {
        Ok(2 * n)
    }

    #[handler]
    async fn fail(&self, _ctx: Context<'_>, how: Json<Failure>) -> HandlerResult<String> {
        let how = how.into_inner();
        Err(TerminalError::new_with_code(how.code, how.message).into())
    }

    #[handler]
    async fn retry(&self, _ctx: Context<'_>, token: String) -> HandlerResult<i64> {
        fails(&token, 2)
    }

    #[handler]
    async fn run(&self, ctx: Context<'_>, token: String) -> HandlerResult<i64> {
        Ok(ctx.run(|| async move { fails(&token, 2) }).name("flaky").retry_policy(retries()).await?)
    }

    #[handler]
    async fn exhaust(&self, ctx: Context<'_>, token: String) -> HandlerResult<String> {
        let t = token.clone();
        let step = ctx.run(|| async move { fails(&t, 1000) }).name("hopeless").retry_policy(retries().max_attempts(3));
        match step.await {
            Err(e) => Ok(format!("{} after {}", e.code(), attempts(&token))),
            Ok(_) => Ok("succeeded".into()),
        }
    }

    #[handler(name = "runTerminal")]
    async fn run_terminal(&self, ctx: Context<'_>, token: String) -> HandlerResult<String> {
        let t = token.clone();
        let step = ctx
            .run(|| async move {
                attempt(&t);
                Err::<String, HandlerError>(TerminalError::new_with_code(418, "teapot").into())
            })
            .name("terminal");
        match step.await {
            Err(e) => Ok(format!("{} {} after {}", e.code(), e.message(), attempts(&token))),
            Ok(_) => Ok("succeeded".into()),
        }
    }

    #[handler]
    async fn steps(&self, ctx: Context<'_>, n: i64) -> HandlerResult<i64> {
        let mut total = 0;
        for i in 0..n {
            total += ctx.run(|| async move { Ok(i) }).name("step").await?;
        }
        Ok(total)
    }

    #[handler]
    async fn sleep(&self, ctx: Context<'_>, n: u64) -> HandlerResult<String> {
        ctx.sleep(ms(n)).await?;
        Ok("slept".into())
    }

    #[handler]
    async fn race(&self, ctx: Context<'_>, n: u64) -> HandlerResult<String> {
        let (_, never) = ctx.awakeable::<String>();
        let who = restate_sdk::select! {
            _ = never => { "never" },
            _ = ctx.sleep(ms(n)) => { "sleep" },
            _ = ctx.sleep(Duration::from_secs(3600)) => { "hour" },
        };
        Ok(who.into())
    }

    #[handler]
    async fn gather(&self, ctx: Context<'_>, n: i64) -> HandlerResult<i64> {
        let mut calls = DurableFuturesUnordered::new();
        for i in 0..n {
            calls.push(ctx.service_client::<SvcClient>().double(i).call());
        }
        let mut total = 0;
        while let Some((_, answer)) = calls.next().await? {
            total += answer?;
        }
        Ok(total)
    }

    #[handler]
    async fn order(&self, ctx: Context<'_>, delays: Json<Vec<u64>>) -> HandlerResult<Json<Vec<u64>>> {
        let delays = delays.into_inner();
        let mut waits = DurableFuturesUnordered::new();
        for &n in &delays {
            waits.push(ctx.sleep(ms(n)));
        }
        let mut ended = vec![];
        while let Some((i, result)) = waits.next().await? {
            result?;
            ended.push(delays[i]);
        }
        Ok(ended.into())
    }

    #[handler]
    async fn random(&self, mut ctx: Context<'_>, token: String) -> HandlerResult<bool> {
        let uuid = ctx.rand_uuid().to_string();
        DRAWN.lock().unwrap().entry(token.clone()).or_default().push(uuid);
        ctx.run(|| async { Ok(1) }).name("recorded").await?;
        fails(&token, 1)?;
        let all = DRAWN.lock().unwrap();
        let drawn = &all[&token];
        Ok(drawn.len() > 1 && drawn.iter().all(|d| *d == drawn[0]))
    }

    #[handler]
    async fn awake(&self, ctx: Context<'_>, boxed: String) -> HandlerResult<String> {
        let (id, value) = ctx.awakeable::<String>();
        ctx.object_client::<ObjClient>(boxed).put(Json(Named { name: "id".into(), value: id })).send();
        Ok(match value.await {
            Ok(v) => v,
            Err(e) => format!("{} {}", e.code(), e.message()),
        })
    }

    #[handler]
    async fn resolve(&self, ctx: Context<'_>, what: Json<Valued>) -> HandlerResult<()> {
        let what = what.into_inner();
        ctx.resolve_awakeable(&what.id, what.value);
        Ok(())
    }

    #[handler]
    async fn reject(&self, ctx: Context<'_>, what: Json<Valued>) -> HandlerResult<()> {
        let what = what.into_inner();
        ctx.reject_awakeable(&what.id, TerminalError::new(what.value));
        Ok(())
    }

    #[handler]
    async fn calls(&self, ctx: Context<'_>, key: String) -> HandlerResult<Json<Vec<i64>>> {
        let object = || ctx.object_client::<ObjClient>(key.clone());
        let first = object().add(1).call().await?.into_inner();
        object().add(10).send();
        let second = object().add(100).call().await?.into_inner();
        Ok(vec![first.new, second.new].into())
    }

    #[handler]
    async fn later(&self, ctx: Context<'_>, what: Json<Later>) -> HandlerResult<String> {
        let what = what.into_inner();
        let handle = ctx.object_client::<ObjClient>(what.key).add(1).send_after(ms(what.ms)).await?;
        Ok(handle.invocation_id().to_owned())
    }

    #[handler]
    async fn block(&self, ctx: Context<'_>, key: String) -> HandlerResult<()> {
        let (_, never) = ctx.awakeable::<String>();
        if let Err(e) = never.await {
            ctx.object_client::<ObjClient>(key).add(7).call().await?;
            return Err(e.into());
        }
        Ok(())
    }

    #[handler(name = "cancelOther")]
    async fn cancel_other(&self, ctx: Context<'_>, key: String) -> HandlerResult<u16> {
        let other = ctx.service_client::<SvcClient>().block(key).send().await?;
        ctx.sleep(ms(20)).await?;
        other.cancel();
        Ok(match other.attach::<String>().await {
            Ok(_) => 0,
            Err(e) => e.code(),
        })
    }

    #[handler]
    async fn attach(&self, ctx: Context<'_>, other: String) -> HandlerResult<String> {
        Ok(ctx.invocation_handle(other).attach::<String>().await?)
    }

    #[handler]
    async fn once(&self, ctx: Context<'_>, token: String) -> HandlerResult<i64> {
        Ok(ctx.run(|| async move { fails(&token, 0) }).name("count").await?)
    }

    #[handler]
    async fn idempotent(&self, ctx: Context<'_>, token: String) -> HandlerResult<Json<Vec<i64>>> {
        let mut all = vec![];
        for _ in 0..2 {
            all.push(ctx.service_client::<SvcClient>().once(token.clone()).idempotency_key(token.clone()).call().await?);
        }
        Ok(all.into())
    }

    #[handler]
    async fn header(&self, ctx: Context<'_>) -> HandlerResult<String> {
        Ok(ctx.headers().get("x-a").cloned().unwrap_or_default())
    }

    #[handler]
    async fn forward(&self, ctx: Context<'_>) -> HandlerResult<String> {
        Ok(ctx.service_client::<SvcClient>().header().header("x-a".into(), "b".into()).call().await?)
    }

    #[handler]
    async fn generic(&self, ctx: Context<'_>, key: String) -> HandlerResult<i64> {
        let call = ctx.request::<Vec<u8>, Vec<u8>>(RequestTarget::object("Obj", key, "add"), b"5".to_vec()).call();
        let added: Added = serde_json::from_slice(&call.await?)?;
        Ok(added.new)
    }

    #[handler]
    async fn workflow(&self, ctx: Context<'_>, key: String) -> HandlerResult<String> {
        let result = ctx.workflow_client::<FlowClient>(key.clone()).run("in".into()).call();
        result.invocation_handle().await?;
        ctx.workflow_client::<FlowClient>(key).resolve("called".into()).call().await?;
        Ok(result.await?)
    }

    #[handler(name = "waitSignal")]
    async fn wait_signal(&self, ctx: Context<'_>, boxed: String) -> HandlerResult<String> {
        let id = ctx.invocation_id().to_owned();
        ctx.object_client::<ObjClient>(boxed).put(Json(Named { name: "id".into(), value: id })).send();
        Ok(match ctx.signal::<String>("go").await {
            Ok(v) => v,
            Err(e) => format!("{} {}", e.code(), e.message()),
        })
    }

    #[handler(name = "sendSignal")]
    async fn send_signal(&self, ctx: Context<'_>, what: Json<Valued>) -> HandlerResult<()> {
        let what = what.into_inner();
        let signal = ctx.invocation_handle(what.id).signal("go");
        if what.value == "reject" {
            signal.reject(TerminalError::new("no"));
        } else {
            signal.resolve(what.value);
        }
        Ok(())
    }

    #[handler(name = "idempotencyKey")]
    async fn idempotency_key(&self, ctx: Context<'_>) -> HandlerResult<String> {
        Ok(ctx.idempotency_key().unwrap_or_default().to_owned())
    }

    #[handler]
    async fn long(&self, ctx: Context<'_>, what: Json<Long>) -> HandlerResult<i64> {
        let what = what.into_inner();
        let mut last = 0;
        for i in 0..what.n {
            ctx.run(|| async move { Ok(i) }).name("step").await?;
            last = ctx.object_client::<ObjClient>(what.key.clone()).add(1).call().await?.into_inner().new;
            ctx.sleep(ms(5)).await?;
        }
        Ok(last)
    }
}

struct Obj;

#[restate_sdk::object(
    name = "Obj",
    invocation_retry_policy(initial_interval = "20ms", factor = 2.0, max_interval = "200ms", max_attempts = 1000)
)]
impl Obj {
    #[handler]
    async fn add(&self, ctx: ObjectContext<'_>, n: i64) -> HandlerResult<Json<Added>> {
        let old = ctx.get::<i64>("n").await?.unwrap_or_default();
        ctx.set("n", old + n);
        Ok(Added { old, new: old + n }.into())
    }

    #[handler(name = "slowAdd")]
    async fn slow_add(&self, ctx: ObjectContext<'_>, n: i64) -> HandlerResult<i64> {
        let old = ctx.get::<i64>("n").await?.unwrap_or_default();
        ctx.sleep(ms(1)).await?;
        let new = ctx.run(|| async move { Ok(old + n) }).name("sum").await?;
        ctx.set("n", new);
        Ok(new)
    }

    #[handler]
    async fn get(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<i64> {
        Ok(ctx.get::<i64>("n").await?.unwrap_or_default())
    }

    #[handler]
    async fn put(&self, ctx: ObjectContext<'_>, what: Json<Named>) -> HandlerResult<()> {
        let what = what.into_inner();
        ctx.set(&what.name, what.value);
        Ok(())
    }

    #[handler]
    async fn read(&self, ctx: SharedObjectContext<'_>, name: String) -> HandlerResult<String> {
        Ok(ctx.get::<String>(&name).await?.unwrap_or("none".into()))
    }

    #[handler]
    async fn clear(&self, ctx: ObjectContext<'_>, name: String) -> HandlerResult<()> {
        ctx.clear(&name);
        Ok(())
    }

    #[handler(name = "clearAll")]
    async fn clear_all(&self, ctx: ObjectContext<'_>) -> HandlerResult<()> {
        ctx.clear_all();
        Ok(())
    }

    #[handler]
    async fn keys(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<Vec<String>>> {
        let mut keys = ctx.get_keys().await?;
        keys.sort();
        Ok(keys.into())
    }

    #[handler]
    async fn within(&self, ctx: ObjectContext<'_>) -> HandlerResult<Json<Vec<String>>> {
        ctx.set("a", "1".to_owned());
        ctx.set("b", "2".to_owned());
        ctx.clear("a");
        let mut seen = vec![];
        for name in ["a", "b"] {
            seen.push(ctx.get::<String>(name).await?.unwrap_or("none".into()));
        }
        ctx.clear_all();
        seen.extend(ctx.get_keys().await?);
        Ok(seen.into())
    }
}

struct Flow;

#[restate_sdk::workflow(
    name = "Flow",
    invocation_retry_policy(initial_interval = "20ms", factor = 2.0, max_interval = "200ms", max_attempts = 1000)
)]
impl Flow {
    #[handler]
    async fn run(&self, ctx: WorkflowContext<'_>, text: String) -> HandlerResult<String> {
        ctx.set("status", "waiting".to_owned());
        let value = ctx.promise::<String>("go").await?;
        ctx.set("status", "done".to_owned());
        Ok(format!("{text}:{value}"))
    }

    #[handler]
    async fn resolve(&self, ctx: SharedWorkflowContext<'_>, value: String) -> HandlerResult<()> {
        ctx.resolve_promise("go", value);
        Ok(())
    }

    #[handler]
    async fn reject(&self, ctx: SharedWorkflowContext<'_>, reason: String) -> HandlerResult<()> {
        ctx.reject_promise("go", TerminalError::new(reason));
        Ok(())
    }

    #[handler]
    async fn peek(&self, ctx: SharedWorkflowContext<'_>) -> HandlerResult<String> {
        Ok(ctx.peek_promise::<String>("go").await?.unwrap_or("none".into()))
    }

    #[handler]
    async fn status(&self, ctx: SharedWorkflowContext<'_>) -> HandlerResult<String> {
        Ok(ctx.get::<String>("status").await?.unwrap_or("none".into()))
    }
}

#[tokio::main]
async fn main() {
    let mut endpoint = Endpoint::builder().bind(Svc).bind(Obj).bind(Flow);
    if let Ok(key) = std::env::var("IDENTITY_KEY") {
        endpoint = endpoint.identity_key(&key).expect("IDENTITY_KEY is a key");
    }
    let port = std::env::var("PORT").expect("PORT is set");
    HttpServer::new(endpoint.build())
        .listen_and_serve(format!("127.0.0.1:{port}").parse().expect("PORT is a port"))
        .await;
}
