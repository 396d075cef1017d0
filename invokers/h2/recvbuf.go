package h2

import "sync"

// chunkSize makes a chunk 4 KiB with its header.
const chunkSize = 4096 - 32

// chunk is a piece of a response body that was received and not read.
type chunk struct {
	next *chunk
	r, w int
	b    [chunkSize]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// recvBuffer is a queue of bytes in pooled chunks. Small pieces share a chunk, so what it holds is at most
// one chunk more than its bytes. The owner locks.
type recvBuffer struct {
	head, tail *chunk
	n          int
}

func (b *recvBuffer) write(p []byte) {
	b.n += len(p)
	for len(p) > 0 {
		if b.tail == nil || b.tail.w == chunkSize {
			b.grow()
		}
		n := copy(b.tail.b[b.tail.w:], p)
		b.tail.w += n
		p = p[n:]
	}
}

func (b *recvBuffer) grow() {
	c := chunks.Get().(*chunk)
	c.next, c.r, c.w = nil, 0, 0
	if b.tail == nil {
		b.head = c
	} else {
		b.tail.next = c
	}
	b.tail = c
}

func (b *recvBuffer) read(p []byte) (n int) {
	for n < len(p) && b.head != nil {
		c := b.head
		m := copy(p[n:], c.b[c.r:c.w])
		c.r += m
		n += m
		if c.r == c.w {
			b.pop()
		}
	}
	b.n -= n
	return n
}

func (b *recvBuffer) pop() {
	c := b.head
	b.head = c.next
	if b.head == nil {
		b.tail = nil
	}
	chunks.Put(c)
}

// drop gives everything back and returns how many bytes that were.
func (b *recvBuffer) drop() int {
	n := b.n
	for b.head != nil {
		b.pop()
	}
	b.n = 0
	return n
}
