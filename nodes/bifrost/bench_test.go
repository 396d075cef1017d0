package bifrost

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"perdure/control/cluster"
)

// benchmarkAppendRead measures the way append → durable → read back, with fsync on a real directory.
func benchmarkAppendRead(b *testing.B, logs, writers, window int) {
	n := single(b, b.TempDir())
	payload := make([]byte, 300)
	appenders := make([]*Appender, logs)
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for i := range appenders {
		id := cluster.LogID(i)
		appenders[i] = n.Appender(id, AppenderOptions{Window: window})
		mustAppend(b, appenders[i], "first")
		r := n.Reader(id, 1)
		readers.Go(func() {
			for {
				e, ok, err := r.TryNext()
				if err != nil {
					b.Error(err)
					return
				}
				if ok {
					if began, is := e.Record.Decoded.(*flight); is {
						began.read <- time.Since(began.began)
					}
					continue
				}
				select {
				case <-r.Wait():
				case <-stop:
					return
				}
			}
		})
	}
	var mu sync.Mutex
	var latencies []time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	var work sync.WaitGroup
	for w := range writers {
		count := b.N / writers
		if w < b.N%writers {
			count++
		}
		work.Go(func() {
			own := make([]time.Duration, 0, count)
			f := &flight{read: make(chan time.Duration, 1)}
			a := appenders[w%logs]
			for range count {
				f.began = time.Now()
				if err := a.Append([]Record{{Payload: payload, Decoded: f}}, func(cluster.LSN, error) {}); err != nil {
					b.Error(err)
					return
				}
				own = append(own, <-f.read)
			}
			mu.Lock()
			latencies = append(latencies, own...)
			mu.Unlock()
		})
	}
	work.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1000/float64(b.N), "cpu-µs/rec")
	close(stop)
	readers.Wait()
	slices.Sort(latencies)
	if len(latencies) > 0 {
		b.ReportMetric(float64(latencies[len(latencies)/10].Microseconds()), "p10-µs")
		b.ReportMetric(float64(latencies[len(latencies)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(latencies[len(latencies)*99/100].Microseconds()), "p99-µs")
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rec/s")
	}
}

type flight struct {
	began time.Time
	read  chan time.Duration
}

// cpuTime is the processor time, user and system, that the process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkAppendRead1(b *testing.B)   { benchmarkAppendRead(b, 1, 1, 0) }
func BenchmarkAppendRead64(b *testing.B)  { benchmarkAppendRead(b, 24, 64, 0) }
func BenchmarkAppendRead512(b *testing.B) { benchmarkAppendRead(b, 24, 512, 0) }

// BenchmarkWindow compares how many batches of a log may be under way.
func BenchmarkWindow(b *testing.B) {
	for _, window := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("24 logs 64 writers window %d", window), func(b *testing.B) { benchmarkAppendRead(b, 24, 64, window) })
		b.Run(fmt.Sprintf("1 log 64 writers window %d", window), func(b *testing.B) { benchmarkAppendRead(b, 1, 64, window) })
	}
}

// BenchmarkReplay reads a log from the store, as after a restart.
func BenchmarkReplay(b *testing.B) {
	n := single(b, b.TempDir())
	a := n.Appender(1, AppenderOptions{})
	const records = 100_000
	for i := 0; i < records; i += 1000 {
		batch := make([]Record, 1000)
		for j := range batch {
			batch[j].Payload = make([]byte, 300)
		}
		done := make(chan error, 1)
		if err := a.Append(batch, func(_ cluster.LSN, err error) { done <- err }); err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	n.cache.release(cluster.NewLogletID(1, 0), records+1)
	b.ResetTimer()
	b.ReportAllocs()
	for range b.N {
		r := n.Reader(1, 1)
		for readNext(b, r).LSN < records {
		}
		r.Close()
	}
	b.ReportMetric(float64(b.N)*records/b.Elapsed().Seconds(), "rec/s")
}
