package endpoint;

import dev.restate.sdk.SharedWorkflowContext;
import dev.restate.sdk.WorkflowContext;
import dev.restate.sdk.annotation.Shared;
import dev.restate.sdk.annotation.Workflow;
import dev.restate.sdk.common.DurablePromiseKey;
import dev.restate.sdk.common.StateKey;

@Workflow
public class Flow {
  private static final StateKey<String> STATUS = StateKey.of("status", String.class);
  private static final DurablePromiseKey<String> GO = DurablePromiseKey.of("go", String.class);

  @Workflow
  public String run(WorkflowContext ctx, String text) {
    ctx.set(STATUS, "waiting");
    String value = ctx.promise(GO).future().await();
    ctx.set(STATUS, "done");
    return text + ":" + value;
  }

  @Shared
  public void resolve(SharedWorkflowContext ctx, String value) {
    ctx.promiseHandle(GO).resolve(value);
  }

  @Shared
  public void reject(SharedWorkflowContext ctx, String reason) {
    ctx.promiseHandle(GO).reject(reason);
  }

  @Shared
  public String peek(SharedWorkflowContext ctx) {
    return ctx.promise(GO).peek().orElse("none");
  }

  @Shared
  public String status(SharedWorkflowContext ctx) {
    return ctx.get(STATUS).orElse("none");
  }
}
