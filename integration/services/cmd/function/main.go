// Command function serves the test services of package services as a Lambda function. SERVICES_PREFIX is the prefix of their
// names, SERVICES_MEMORY the URL of the memory that all processes of the function share.
package main

import (
	"fmt"
	"os"

	"github.com/aws/aws-lambda-go/lambda"

	"perdure/integration/services"
)

func main() {
	h, err := services.LambdaHandler(services.Options{Prefix: os.Getenv("SERVICES_PREFIX"), RequestResponse: true}, os.Getenv("SERVICES_MEMORY"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "function:", err)
		os.Exit(1)
	}
	lambda.Start(h)
}
