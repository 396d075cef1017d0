package main

import (
	"context"
	"log/slog"

	"perdure/nodes/node"
)

// startNode starts a node with all its roles.
func startNode(ctx context.Context, cfg node.Config, log *slog.Logger) (runningNode, error) {
	n, err := node.Start(ctx, cfg, version, log)
	if err != nil {
		return nil, err // not n: a nil *Node in the interface would look like a node
	}
	return n, nil
}
