package endpoint;

import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;

/** What this process did, by token. On purpose not durable. */
final class Attempts {
  private static final Map<String, Integer> COUNT = new ConcurrentHashMap<>();
  private static final Map<String, List<String>> DRAWN = new ConcurrentHashMap<>();

  private Attempts() {}

  static int count(String token) {
    return COUNT.getOrDefault(token, 0);
  }

  static int more(String token) {
    return COUNT.merge(token, 1, Integer::sum);
  }

  /** Fails the first times that it is called with the token, then returns how often it was. */
  static int fails(String token, int times) {
    int n = more(token);
    if (n <= times) {
      throw new IllegalStateException("not yet");
    }
    return n;
  }

  static List<String> drawn(String token) {
    return DRAWN.computeIfAbsent(token, t -> new CopyOnWriteArrayList<>());
  }
}
