package lambdaemu

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// event is one call on its way through a process.
type event struct {
	id, arn  string
	payload  []byte
	timeout  time.Duration
	deadline time.Time
	result   chan result // capacity 1; the first counts
}

// result is what a call came to.
type result struct {
	payload []byte
	err     string // X-Amz-Function-Error
}

func failed(kind, format string, args ...any) result {
	b, err := json.Marshal(map[string]string{"errorType": kind, "errorMessage": fmt.Sprintf(format, args...)})
	if err != nil {
		panic(err) // strings always marshal
	}
	return result{b, "Unhandled"}
}

func (ev *event) finish(r result) {
	select {
	case ev.result <- r:
	default:
	}
}

// environment is one process and the Runtime API that only it talks to. It belongs to one call at a time.
type environment struct {
	v      *version
	cmd    *exec.Cmd
	srv    *http.Server
	events chan *event
	asked  chan struct{} // capacity 1: the runtime wants the next event
	done   chan struct{} // closed when the process has ended
	exit   error         // how; after done

	mu      sync.Mutex
	current *event
	initErr string // what the runtime said about its failed start
}

// start starts the process of a version. The caller holds f.mu.
func start(v *version) (*environment, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the runtime: %w", err)
	}
	env := &environment{v: v, events: make(chan *event), asked: make(chan struct{}, 1), done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", env.serveNext)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", env.serveResponse)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", env.serveError)
	mux.HandleFunc("POST /2018-06-01/runtime/init/error", env.serveInitError)
	env.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	cmd := exec.Command(v.bootstrap)
	cmd.Dir = filepath.Dir(v.bootstrap)
	cmd.Env = append(environ(v, ln.Addr().String()), v.f.Env...)
	out := &logWriter{log: v.f.e.cfg.Logger.With("function", v.f.name, "version", v.number)}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		ln.Close()
		return nil, fmt.Errorf("start the bootstrap: %w", err)
	}
	env.cmd = cmd
	v.f.wg.Go(func() { env.srv.Serve(ln) }) // ends when the process does
	v.f.wg.Go(func() {
		env.exit = cmd.Wait()
		close(env.done)
		env.srv.Close()
		v.gone(env)
	})
	return env, nil
}

// environ is the environment that Lambda gives to a runtime.
func environ(v *version, api string) []string {
	region := strings.Split(v.f.ARN, ":")[3]
	return []string{
		"AWS_LAMBDA_RUNTIME_API=" + api, "_HANDLER=bootstrap", "AWS_EXECUTION_ENV=AWS_Lambda_provided.al2023",
		"AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region, "AWS_LAMBDA_FUNCTION_NAME=" + v.f.name,
		"AWS_LAMBDA_FUNCTION_VERSION=" + strconv.Itoa(v.number), "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128", "AWS_LAMBDA_INITIALIZATION_TYPE=on-demand",
		"LAMBDA_TASK_ROOT=" + filepath.Dir(v.bootstrap), "TZ=:UTC", "LANG=en_US.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin", "TMPDIR=" + os.TempDir(),
	}
}

func (env *environment) signal(s syscall.Signal) {
	// The group's leader is our child and not yet waited for, or the group is gone, which is as well.
	_ = syscall.Kill(-env.cmd.Process.Pid, s)
}

// end kills the process and waits for its end. The wait for the process holds its id until then.
func (env *environment) end() {
	select {
	case <-env.done:
		return
	default:
	}
	env.signal(syscall.SIGKILL)
	<-env.done
}

// run hands an event to the process and waits for what comes of it. good says that the process can take another one.
func (env *environment) run(ev *event, cold, crash bool) (res result, good bool) {
	if !cold {
		env.signal(syscall.SIGCONT)
	} else if res, ok := env.awaitInit(ev); !ok {
		return res, false
	}
	ev.deadline = time.Now().Add(ev.timeout) // the start has a limit of its own
	timer := time.NewTimer(ev.timeout)
	defer timer.Stop()
	select {
	case env.events <- ev:
	case <-env.done:
		return env.exited(ev), false
	}
	if crash { // whatever it had done by then
		env.end()
		return env.exited(ev), false
	}
	select {
	case res = <-ev.result:
	case <-env.done:
		select { // it may have answered before it ended
		case res = <-ev.result:
			return res, false
		default:
		}
		return env.exited(ev), false
	case <-timer.C:
		return env.timedOut(ev), false
	}
	// The call is over when the runtime asks for the next event; what it does until then is part of the call.
	select {
	case <-env.asked:
	case <-env.done:
		return res, false
	case <-timer.C:
		return env.timedOut(ev), false
	}
	if !env.v.f.NoFreeze {
		env.signal(syscall.SIGSTOP)
	}
	return res, true
}

// awaitInit waits until a fresh process asks for its first event.
func (env *environment) awaitInit(ev *event) (result, bool) {
	timer := time.NewTimer(initTimeout)
	defer timer.Stop()
	select {
	case <-env.asked:
		return result{}, true
	case <-env.done:
		env.mu.Lock()
		said := env.initErr
		env.mu.Unlock()
		if said != "" {
			return result{[]byte(said), "Unhandled"}, false
		}
		return env.exited(ev), false
	case <-timer.C:
		return failed("Sandbox.Timedout", "RequestId: %s Error: Init phase timed out after %.2f seconds", ev.id, initTimeout.Seconds()), false
	}
}

func (env *environment) exited(ev *event) result {
	reason := "Runtime exited without providing a reason"
	if env.exit != nil {
		reason = "Runtime exited with error: " + env.exit.Error()
	}
	return failed("Runtime.ExitError", "RequestId: %s Error: %s", ev.id, reason)
}

func (env *environment) timedOut(ev *event) result {
	return failed("Sandbox.Timedout", "RequestId: %s Error: Task timed out after %.2f seconds", ev.id, ev.timeout.Seconds())
}

func (env *environment) serveNext(w http.ResponseWriter, r *http.Request) {
	select {
	case env.asked <- struct{}{}:
	default:
	}
	var ev *event
	select {
	case ev = <-env.events:
	case <-env.done:
		drop()
	case <-r.Context().Done():
		drop()
	}
	env.mu.Lock()
	env.current = ev
	env.mu.Unlock()
	h := w.Header()
	h.Set("Lambda-Runtime-Aws-Request-Id", ev.id)
	h.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(ev.deadline.UnixMilli(), 10))
	h.Set("Lambda-Runtime-Invoked-Function-Arn", ev.arn)
	h.Set("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000000;Parent=0000000000000000;Sampled=0")
	h.Set("Content-Type", "application/json")
	w.Write(ev.payload) // an error means that the process has ended
}

// report takes what the runtime says about the current event.
func (env *environment) report(w http.ResponseWriter, r *http.Request, functionError string) {
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxResponse+1))
	if err != nil {
		drop()
	}
	env.mu.Lock()
	ev := env.current
	env.mu.Unlock()
	if ev == nil || ev.id != r.PathValue("id") {
		answerRuntime(w, http.StatusBadRequest, `{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}`)
		return
	}
	if len(body) > MaxResponse {
		ev.finish(failed("Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (%d bytes).", MaxResponse))
		io.Copy(io.Discard, r.Body) // so that the runtime reads the answer
		answerRuntime(w, http.StatusRequestEntityTooLarge, `{"errorMessage":"Exceeded maximum allowed payload size","errorType":"RequestEntityTooLarge"}`)
		return
	}
	ev.finish(result{body, functionError})
	answerRuntime(w, http.StatusAccepted, `{"status":"OK"}`)
}

func answerRuntime(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, body) // an error means that the process has ended
}

func (env *environment) serveResponse(w http.ResponseWriter, r *http.Request) { env.report(w, r, "") }

func (env *environment) serveError(w http.ResponseWriter, r *http.Request) {
	env.report(w, r, "Unhandled")
}

func (env *environment) serveInitError(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		drop()
	}
	env.mu.Lock()
	env.initErr = string(body)
	env.mu.Unlock()
	answerRuntime(w, http.StatusAccepted, `{"status":"OK"}`)
}

// logWriter logs what a process writes, by lines.
type logWriter struct {
	log *slog.Logger
	buf []byte
}

const maxLogLine = 4 << 10

// Write implements io.Writer. os/exec calls it from one goroutine when both outputs are the same writer.
func (l *logWriter) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	for {
		i := bytes.IndexByte(l.buf, '\n')
		if i < 0 && len(l.buf) < maxLogLine {
			return len(p), nil
		}
		if i < 0 {
			i = len(l.buf) - 1
		}
		l.log.Info("function log", "line", string(bytes.TrimRight(l.buf[:i+1], "\n")))
		l.buf = l.buf[i+1:]
	}
}
