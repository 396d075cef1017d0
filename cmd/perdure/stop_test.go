package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

// A node that hangs while it stops, as on a disk that does not answer, must not keep its process for ever: it would hold
// ports and directory, and nobody would start it again.
func TestNodeThatDoesNotStopIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		done := make(chan error, 1)
		done <- errors.New("the disk is gone")
		s, _, _ := testServer(t, started(&fakeNode{done: done, shutdown: func(context.Context) error { <-hang; return nil }}))
		err := s.run(context.Background())
		if err == nil || !strings.Contains(err.Error(), "the disk is gone") || !strings.Contains(err.Error(), "did not stop within") {
			t.Errorf("got %v", err)
		}
		close(hang)
	})
}
