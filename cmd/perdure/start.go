package main

import (
	"context"
	"errors"
	"log/slog"

	"perdure/nodes/node"
)

// startNode starts a node with all its roles.
func startNode(context.Context, node.Config, *slog.Logger) (runningNode, error) {
	return nil, errors.New("this build has no node to start")
}
