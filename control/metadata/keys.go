package metadata

import (
	"strconv"

	"perdure/control/cluster"
)

// The keys. Prefixes end in a slash, so that no key of one is under another.
const (
	NodesKey         = "nodes"      // cluster.NodesConfig
	PartitionsKey    = "partitions" // placement.Table
	LogPrefix        = "log/"       // chain.Chain by log id
	EpochPrefix      = "epoch/"     // placement.Epoch by partition id
	SchemaIndexKey   = "schema/index"
	DeploymentPrefix = "schema/deployment/"
	SchemaPrefix     = "schema/" // index and deployments
)

// LogKey is the key of a log's chain.
func LogKey(id cluster.LogID) string { return LogPrefix + strconv.FormatUint(uint64(id), 10) }

// EpochKey is the key of a partition's leadership epoch and replica sets.
func EpochKey(id cluster.PartitionID) string {
	return EpochPrefix + strconv.FormatUint(uint64(id), 10)
}

// DeploymentKey is the key of a deployment, by its printed id (dp_…).
func DeploymentKey(id string) string { return DeploymentPrefix + id }
