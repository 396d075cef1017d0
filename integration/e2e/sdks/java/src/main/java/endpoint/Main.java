package endpoint;

import dev.restate.sdk.auth.signing.RestateRequestIdentityVerifier;
import dev.restate.sdk.endpoint.Endpoint;
import dev.restate.sdk.endpoint.definition.InvocationRetryPolicy;
import dev.restate.sdk.http.vertx.HttpEndpointRequestHandler;
import dev.restate.sdk.http.vertx.RestateHttpServer;
import java.time.Duration;
import java.util.List;

/** The services of this suite with the Java SDK. */
public final class Main {
  private Main() {}

  public static void main(String[] args) {
    Endpoint.Builder endpoint = Endpoint.builder();
    for (Object service : List.of(new Svc(), new Obj(), new Flow())) {
      endpoint.bind(
          service,
          c ->
              c.invocationRetryPolicy(
                  InvocationRetryPolicy.builder()
                      .initialInterval(Duration.ofMillis(20))
                      .maxInterval(Duration.ofMillis(200))
                      .exponentiationFactor(2.0)
                      .maxAttempts(1000)));
    }
    String key = System.getenv("IDENTITY_KEY");
    if (key != null) {
      endpoint.withRequestIdentityVerifier(RestateRequestIdentityVerifier.fromKey(key));
    }
    boolean requestResponse = "rr".equals(System.getenv("MODE"));
    RestateHttpServer.fromHandler(HttpEndpointRequestHandler.fromEndpoint(endpoint.build(), requestResponse))
        .listen(Integer.parseInt(System.getenv("PORT")), "127.0.0.1");
  }
}
