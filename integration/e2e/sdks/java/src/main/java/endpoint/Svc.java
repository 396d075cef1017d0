package endpoint;

import com.fasterxml.jackson.databind.ObjectMapper;
import dev.restate.common.Request;
import dev.restate.common.Target;
import dev.restate.sdk.Awakeable;
import dev.restate.sdk.CallDurableFuture;
import dev.restate.sdk.Context;
import dev.restate.sdk.DurableFuture;
import dev.restate.sdk.Select;
import dev.restate.sdk.annotation.Handler;
import dev.restate.sdk.annotation.Name;
import dev.restate.sdk.annotation.Service;
import dev.restate.sdk.common.RetryPolicy;
import dev.restate.sdk.common.TerminalException;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;

/** What each handler does is written in doc.go, beside the directory of this program. */
@Service
public class Svc {
  public record Failure(int code, String message) {}

  public record Valued(String id, String value) {}

  public record Later(String key, int ms) {}

  public record Long(String key, int n) {}

  private static RetryPolicy retries() {
    return RetryPolicy.exponential(Duration.ofMillis(10), 2).setMaxDelay(Duration.ofMillis(20));
  }

  @Handler
  public String greet(Context ctx, String name) {
    return "Hello, " + name + "!";
  }

  @Handler
  public void nothing(Context ctx) {}

  @Handler
  public String echo(Context ctx, String text) {
    return text;
  }

  @Handler
  @Name("double")
  public int twice(Context ctx, int n) {
    return 2 * n;
  }

  @Handler
  public String fail(Context ctx, Failure how) {
    throw new TerminalException(how.code(), how.message());
  }

  @Handler
  public int retry(Context ctx, String token) {
    return Attempts.fails(token, 2);
  }

  @Handler
  public int run(Context ctx, String token) {
    return ctx.run("flaky", Integer.class, retries(), () -> Attempts.fails(token, 2));
  }

  @Handler
  public String exhaust(Context ctx, String token) {
    try {
      ctx.run("hopeless", Integer.class, retries().setMaxAttempts(3), () -> Attempts.fails(token, 1000));
    } catch (TerminalException e) {
      return e.getCode() + " after " + Attempts.count(token);
    }
    return "succeeded";
  }

  @Handler
  public String runTerminal(Context ctx, String token) {
    try {
      ctx.run(
          "terminal",
          () -> {
            Attempts.more(token);
            throw new TerminalException(418, "teapot");
          });
    } catch (TerminalException e) {
      return e.getCode() + " " + e.getMessage() + " after " + Attempts.count(token);
    }
    return "succeeded";
  }

  @Handler
  public int steps(Context ctx, int n) {
    int total = 0;
    for (int i = 0; i < n; i++) {
      int step = i;
      total += ctx.run("step", Integer.class, () -> step);
    }
    return total;
  }

  @Handler
  public String sleep(Context ctx, int ms) {
    ctx.sleep(Duration.ofMillis(ms));
    return "slept";
  }

  @Handler
  public String race(Context ctx, int ms) {
    return Select.<String>select()
        .when(ctx.awakeable(String.class), v -> "never")
        .when(ctx.timer(Duration.ofMillis(ms)), v -> "sleep")
        .when(ctx.timer(Duration.ofHours(1)), v -> "hour")
        .await();
  }

  @Handler
  public int gather(Context ctx, int n) {
    List<DurableFuture<?>> calls = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      calls.add(SvcClient.fromContext(ctx).twice(i));
    }
    DurableFuture.all(calls).await();
    int total = 0;
    for (DurableFuture<?> call : calls) {
      total += (Integer) call.await();
    }
    return total;
  }

  @Handler
  public List<Integer> order(Context ctx, List<Integer> delays) {
    List<DurableFuture<?>> waits = new ArrayList<>();
    List<Integer> left = new ArrayList<>(delays);
    for (int ms : delays) {
      waits.add(ctx.timer(Duration.ofMillis(ms)));
    }
    List<Integer> ended = new ArrayList<>();
    while (!waits.isEmpty()) {
      int i = DurableFuture.any(waits).await();
      waits.remove(i);
      ended.add(left.remove(i));
    }
    return ended;
  }

  @Handler
  public boolean random(Context ctx, String token) {
    List<String> drawn = Attempts.drawn(token);
    drawn.add(ctx.random().nextUUID() + " " + ctx.random().nextDouble());
    ctx.run("recorded", () -> {});
    Attempts.fails(token, 1);
    return drawn.size() > 1 && new HashSet<>(drawn).size() == 1;
  }

  @Handler
  public String awake(Context ctx, String box) {
    Awakeable<String> value = ctx.awakeable(String.class);
    ObjClient.fromContext(ctx, box).send().put(new Obj.Named("id", value.id()));
    try {
      return value.await();
    } catch (TerminalException e) {
      return e.getCode() + " " + e.getMessage();
    }
  }

  @Handler
  public void resolve(Context ctx, Valued what) {
    ctx.awakeableHandle(what.id()).resolve(String.class, what.value());
  }

  @Handler
  public void reject(Context ctx, Valued what) {
    ctx.awakeableHandle(what.id()).reject(what.value());
  }

  @Handler
  public List<Integer> calls(Context ctx, String key) {
    var object = ObjClient.fromContext(ctx, key);
    int first = object.add(1).await().now();
    object.send().add(10);
    return List.of(first, object.add(100).await().now());
  }

  @Handler
  public String later(Context ctx, Later what) {
    return ObjClient.fromContext(ctx, what.key()).send().add(1, Duration.ofMillis(what.ms())).invocationId();
  }

  @Handler
  public void block(Context ctx, String key) {
    try {
      ctx.awakeable(String.class).await();
    } catch (TerminalException e) {
      ObjClient.fromContext(ctx, key).add(7).await();
      throw e;
    }
  }

  @Handler
  public int cancelOther(Context ctx, String key) {
    var other = SvcClient.fromContext(ctx).send().block(key);
    other.invocationId();
    ctx.sleep(Duration.ofMillis(20));
    other.cancel();
    try {
      other.attach().await();
    } catch (TerminalException e) {
      return e.getCode();
    }
    return 0;
  }

  @Handler
  public String attach(Context ctx, String other) {
    return ctx.invocationHandle(other, String.class).attach().await();
  }

  @Handler
  public int once(Context ctx, String token) {
    return ctx.run("count", Integer.class, () -> Attempts.more(token));
  }

  @Handler
  public List<Integer> idempotent(Context ctx, String token) {
    List<Integer> all = new ArrayList<>();
    for (int i = 0; i < 2; i++) {
      all.add(SvcClient.fromContext(ctx).once(token, req -> req.idempotencyKey(token)).await());
    }
    return all;
  }

  @Handler
  public String header(Context ctx) {
    return ctx.request().headers().getOrDefault("x-a", "");
  }

  @Handler
  public String forward(Context ctx) {
    return SvcClient.fromContext(ctx).header(req -> req.header("x-a", "b")).await();
  }

  @Handler
  public int generic(Context ctx, String key) throws IOException {
    var call = ctx.call(Request.of(Target.virtualObject("Obj", key, "add"), "5".getBytes()));
    return new ObjectMapper().readTree(call.await()).get("new").asInt();
  }

  @Handler
  public String workflow(Context ctx, String key) {
    CallDurableFuture<String> result = FlowClient.fromContext(ctx, key).run("in");
    FlowClient.fromContext(ctx, key).resolve("called").await();
    return result.await();
  }

  @Handler
  @Name("long")
  public int goOn(Context ctx, Long what) {
    int last = 0;
    for (int i = 0; i < what.n(); i++) {
      int step = i;
      ctx.run("step", Integer.class, () -> step);
      last = ObjClient.fromContext(ctx, what.key()).add(1).await().now();
      ctx.sleep(Duration.ofMillis(5));
    }
    return last;
  }
}
