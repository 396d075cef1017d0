// Package storepb holds the generated messages of the rows in a partition's store.
package storepb
