package bifrost

import (
	"slices"
	"sync"
	"testing"
	"time"

	"perdure/control/cluster"
)

// benchmarkAppendRead measures the way append → durable → read back, with fsync on a real directory.
func benchmarkAppendRead(b *testing.B, logs, writers int) {
	n := single(b, b.TempDir())
	payload := make([]byte, 300)
	appenders := make([]*Appender, logs)
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for i := range appenders {
		id := cluster.LogID(i)
		appenders[i] = n.Appender(id, AppenderOptions{})
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
	close(stop)
	readers.Wait()
	slices.Sort(latencies)
	if len(latencies) > 0 {
		b.ReportMetric(float64(latencies[len(latencies)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(latencies[len(latencies)*99/100].Microseconds()), "p99-µs")
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rec/s")
	}
}

type flight struct {
	began time.Time
	read  chan time.Duration
}

func BenchmarkAppendRead1(b *testing.B)   { benchmarkAppendRead(b, 1, 1) }
func BenchmarkAppendRead64(b *testing.B)  { benchmarkAppendRead(b, 24, 64) }
func BenchmarkAppendRead512(b *testing.B) { benchmarkAppendRead(b, 24, 512) }
