package endpoint;

import dev.restate.sdk.ObjectContext;
import dev.restate.sdk.SharedObjectContext;
import dev.restate.sdk.annotation.Handler;
import dev.restate.sdk.annotation.Shared;
import dev.restate.sdk.annotation.VirtualObject;
import dev.restate.sdk.common.StateKey;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

@VirtualObject
public class Obj {
  public record Added(int old, @com.fasterxml.jackson.annotation.JsonProperty("new") int now) {}

  public record Named(String name, String value) {}

  private static final StateKey<Integer> N = StateKey.of("n", Integer.class);

  private static StateKey<String> text(String name) {
    return StateKey.of(name, String.class);
  }

  @Handler
  public Added add(ObjectContext ctx, int n) {
    int old = ctx.get(N).orElse(0);
    ctx.set(N, old + n);
    return new Added(old, old + n);
  }

  @Handler
  public int slowAdd(ObjectContext ctx, int n) {
    int old = ctx.get(N).orElse(0);
    ctx.sleep(Duration.ofMillis(1));
    int now = ctx.run("sum", Integer.class, () -> old + n);
    ctx.set(N, now);
    return now;
  }

  @Shared
  @Handler
  public int get(SharedObjectContext ctx) {
    return ctx.get(N).orElse(0);
  }

  @Handler
  public void put(ObjectContext ctx, Named what) {
    ctx.set(text(what.name()), what.value());
  }

  @Shared
  @Handler
  public String read(SharedObjectContext ctx, String name) {
    return ctx.get(text(name)).orElse("none");
  }

  @Handler
  public void clear(ObjectContext ctx, String name) {
    ctx.clear(text(name));
  }

  @Handler
  public void clearAll(ObjectContext ctx) {
    ctx.clearAll();
  }

  @Shared
  @Handler
  public List<String> keys(SharedObjectContext ctx) {
    return ctx.stateKeys().stream().sorted().toList();
  }

  @Handler
  public List<String> within(ObjectContext ctx) {
    ctx.set(text("a"), "1");
    ctx.set(text("b"), "2");
    ctx.clear(text("a"));
    List<String> seen = new ArrayList<>();
    seen.add(ctx.get(text("a")).orElse("none"));
    seen.add(ctx.get(text("b")).orElse("none"));
    ctx.clearAll();
    seen.addAll(ctx.stateKeys());
    return seen;
  }
}
