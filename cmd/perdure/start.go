package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"

	"perdure/nodes/node"
)

// startNode starts a node with all its roles.
func startNode(ctx context.Context, cfg node.Config, log *slog.Logger) (runningNode, error) {
	if err := loadAWS(ctx, &cfg.Worker.Invoker, log); err != nil {
		return nil, err
	}
	n, err := node.Start(ctx, cfg, version, log)
	if err != nil {
		return nil, err // not n: a nil *Node in the interface would look like a node
	}
	return n, nil
}

// loadAWS reads what the AWS SDK takes from the environment and from its own files. It makes no request: credentials are
// looked for when a function is called first, so a server that calls none needs none. What the SDK has to say goes to log.
func loadAWS(ctx context.Context, i *node.Invoker, log *slog.Logger) error {
	log = log.With("component", "aws")
	options := []func(*config.LoadOptions) error{config.WithLogger(logging.LoggerFunc(func(c logging.Classification, format string, args ...any) {
		level := slog.LevelDebug
		if c == logging.Warn {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "AWS SDK", "text", fmt.Sprintf(format, args...))
	}))}
	if i.AWSProfile != "" {
		options = append(options, config.WithSharedConfigProfile(i.AWSProfile))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return fmt.Errorf("read the AWS configuration (worker.invoker.aws-profile, AWS_ variables and files): %w", err)
	}
	i.AWS = &loaded
	if i.AWSExternalID == "" {
		i.AWSExternalID = os.Getenv("AWS_EXTERNAL_ID")
	}
	return nil
}
