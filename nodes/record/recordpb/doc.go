// Package recordpb holds the generated messages of a partition's log and of the requests to its leader.
package recordpb
