// Package datadir is a node's data directory: the lock that keeps a second server out of it, and the marker that says whose
// it is. The marker is how a node notices that a disk was wiped, swapped, copied or not mounted, before it acts under an
// identity whose data it does not have.
//
// The marker changes by writing a new file, making it durable, and renaming it over the old one, so that after a crash
// either is there in full.
package datadir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"perdure/control/cluster"
)

// Names in the directory.
const (
	lockFile   = "LOCK"
	markerFile = "node.json"
)

// The errors that callers decide on. None goes away by itself.
var (
	// ErrLocked means that another server runs in the directory.
	ErrLocked = errors.New("data directory is locked")
	// ErrForeign means that the directory, or a store in it, belongs to another node or cluster.
	ErrForeign = errors.New("data directory belongs to somebody else")
	// ErrLost means that data which the node had is not there any more.
	ErrLost = errors.New("data of this node is missing")
	// ErrMarker means that the marker can not be read.
	ErrMarker = errors.New("marker of the data directory is damaged")
)

// Marker says whose directory this is. Directory is known from the first use on, the rest once the node has joined.
type Marker struct {
	// Directory is the identity of the directory itself.
	Directory   string              `json:"directory"`
	ClusterName string              `json:"cluster_name,omitempty"`
	Fingerprint cluster.Fingerprint `json:"fingerprint,omitempty"`
	NodeName    string              `json:"node_name,omitempty"`
	Node        cluster.NodeID      `json:"node,omitempty"`
	// MetadataStorage and LogStorage are the storage ids of the stores of the node's roles, empty for none.
	MetadataStorage string `json:"metadata_storage,omitempty"`
	LogStorage      string `json:"log_storage,omitempty"`
}

// Joined reports whether a node has ever joined a cluster from this directory.
func (m Marker) Joined() bool { return m.Node != 0 }

// CheckConfiguration says ErrForeign when the server was configured to be another node, or of another cluster, than the
// one that the directory belongs to.
func (m Marker) CheckConfiguration(clusterName, nodeName string) error {
	switch {
	case !m.Joined():
		return nil
	case m.ClusterName != clusterName:
		return fmt.Errorf("%w: it is of a node of cluster %q, but the configured cluster name is %q; correct the cluster name, or use another data directory", ErrForeign, m.ClusterName, clusterName)
	case m.NodeName != nodeName:
		return fmt.Errorf("%w: it is of node %q, but the configured node name is %q; correct the node name, or use another data directory", ErrForeign, m.NodeName, nodeName)
	}
	return nil
}

// CheckCluster says ErrForeign when the cluster that was reached is not the one that the directory belongs to.
func (m Marker) CheckCluster(c cluster.NodesConfig) error {
	if !m.Joined() || m.ClusterName == c.ClusterName && m.Fingerprint == c.Fingerprint {
		return nil
	}
	return fmt.Errorf("%w: it is of a node of cluster %q with fingerprint %s, but the metadata is that of cluster %q with fingerprint %s; two clusters can bear one name: check the metadata addresses, or use an empty data directory to join this cluster as a new node",
		ErrForeign, m.ClusterName, m.Fingerprint, c.ClusterName, c.Fingerprint)
}

// Store is what the marker inside a store says.
type Store struct {
	// Exists is false for a store without a marker, that is an empty one.
	Exists      bool
	Node        cluster.NodeID
	Storage     string
	Fingerprint cluster.Fingerprint
}

// Verdict is what a log server may do with its store.
type Verdict uint8

// The verdicts.
const (
	// Refuse: the node must not run as a log server.
	Refuse Verdict = iota
	// Provision: the store is to be marked, if it is not yet, and then the node's storage state set to read-write.
	Provision
	// Run: the store is that which the cluster counts on.
	Run
	// DeclareLoss: the store is gone; the node sets its storage state to data-loss and does not run.
	DeclareLoss
)

// CheckLogStore judges the log store that was found in the directory of node n. An error comes with Refuse (ErrForeign
// or a plain one) and DeclareLoss (ErrLost) and says what to do. A store that others count on and that is empty would
// answer "I have nothing", and records that were acknowledged could be lost.
func (m Marker) CheckLogStore(n cluster.Node, found Store) (Verdict, error) {
	switch {
	case n.Storage == cluster.StorageDataLoss:
		return Refuse, fmt.Errorf("%w: the log store of node %s was declared lost; start a new node with an empty data directory and another name, and disable this one", ErrLost, n.ID)
	case n.Storage == cluster.StorageDisabled:
		return Refuse, fmt.Errorf("the log store of node %s is disabled; start a new node with another name", n.ID)
	case found.Exists && (found.Node != n.ID || found.Fingerprint != m.Fingerprint):
		return Refuse, fmt.Errorf("%w: the log store is that of node %s of the cluster with fingerprint %s, but this is node %s of %s; disks were swapped: give each node its own disk back", ErrForeign, found.Node, found.Fingerprint, n.ID, m.Fingerprint)
	case found.Exists && m.LogStorage != "" && found.Storage != m.LogStorage:
		return Refuse, fmt.Errorf("%w: the log store has storage id %s, but this node had %s; mount the right disk", ErrForeign, found.Storage, m.LogStorage)
	case n.Storage == cluster.StorageProvisioning:
		return Provision, nil
	case found.Exists:
		return Run, nil
	}
	return DeclareLoss, fmt.Errorf("%w: the log store of node %s is empty, but the cluster relies on it (storage state %s, storage id %s): its disk was wiped or is not mounted. If the data is lost, the other log servers repair what they can: start a new node with an empty data directory and another name",
		ErrLost, n.ID, n.Storage, m.LogStorage)
}

// Dir is a data directory that this process has locked. Its methods may be called concurrently.
type Dir struct {
	path string
	lock *os.File
	mu   struct {
		sync.Mutex
		marker Marker
		closed bool
	}
}

// Open creates the directory if it is missing, locks it, and reads its marker. In a directory without one it writes a
// marker with a new identity from newID. It does not wait for a lock: ErrLocked names the process that holds it.
func Open(path string, newID func() string) (*Dir, error) {
	if err := makeDir(path, syncDir); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, lock: lock}
	if err := d.load(newID); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// makeDir creates a directory and those above it that are missing, durably: everything that the node makes durable in it
// would be gone with its name. sync is syncDir.
func makeDir(path string, sync func(string) error) error {
	parent := filepath.Dir(path)
	if _, err := os.Stat(path); err == nil {
		// A start that was killed before it had synced the parent may have made this one; then the ones above are durable.
		// Where we may not read, or the file system has nothing to sync, we have not made anything.
		if err := sync(parent); !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EINVAL) {
			return err
		}
		return nil
	}
	if parent != path {
		if err := makeDir(parent, sync); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return sync(parent)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func lockDirectory(path string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of data directory: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("%w: %s is in use by another running server%s; stop that one, or give this one another data directory", ErrLocked, path, holderOf(file))
		return nil, errors.Join(err, file.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock data directory %s: %w", path, err), file.Close())
	}
	// The number is for the message above only; the lock itself ends with the process.
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if err := errors.Join(file.Truncate(0), writeAt(file, pid)); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock of data directory: %w", err), file.Close())
	}
	return file, nil
}

func writeAt(file *os.File, s string) error {
	_, err := file.WriteAt([]byte(s), 0)
	return err
}

func holderOf(file *os.File) string {
	content := make([]byte, 32)
	n, _ := file.ReadAt(content, 0)
	if pid := strings.TrimSpace(string(content[:n])); pid != "" {
		return " (pid " + pid + ")"
	}
	return ""
}

func (d *Dir) load(newID func() string) error {
	data, err := os.ReadFile(filepath.Join(d.path, markerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d.SetMarker(Marker{Directory: newID()})
	}
	if err != nil {
		return fmt.Errorf("read marker of data directory: %w", err)
	}
	d.mu.marker, err = DecodeMarker(data)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(d.path, markerFile), err)
	}
	return nil
}

// Path is where the directory is.
func (d *Dir) Path() string { return d.path }

// Sub is the path of a part of the directory.
func (d *Dir) Sub(name string) string { return filepath.Join(d.path, name) }

// Marker is the marker as it is on disk.
func (d *Dir) Marker() Marker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.marker
}

// SetMarker replaces the marker and returns when it is durable. What was once set can not become something else, but
// for empty fields: a directory does not change hands.
func (d *Dir) SetMarker(m Marker) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		return errors.New("write marker of data directory: it is closed")
	}
	if m == d.mu.marker {
		return nil
	}
	if err := d.mu.marker.checkSuccessor(m); err != nil {
		return fmt.Errorf("write marker of data directory %s: %w", d.path, err)
	}
	data, err := m.encode()
	if err != nil {
		return fmt.Errorf("write marker of data directory: %w", err)
	}
	if err := replaceFile(d.path, markerFile, data); err != nil {
		return fmt.Errorf("write marker of data directory: %w", err)
	}
	d.mu.marker = m
	return nil
}

// checkSuccessor says why next can not be the marker of the directory that m is of.
func (m Marker) checkSuccessor(next Marker) error {
	for _, f := range []struct{ what, old, new string }{
		{"directory identity", m.Directory, next.Directory},
		{"cluster", m.ClusterName, next.ClusterName},
		{"node name", m.NodeName, next.NodeName},
		{"metadata storage id", m.MetadataStorage, next.MetadataStorage},
		{"log storage id", m.LogStorage, next.LogStorage},
	} {
		if f.old != "" && f.old != f.new {
			return fmt.Errorf("%w: its %s is %q and can not become %q", ErrForeign, f.what, f.old, f.new)
		}
	}
	if m.Node != 0 && (m.Node != next.Node || m.Fingerprint != next.Fingerprint) {
		return fmt.Errorf("%w: it is of node %s of cluster %s and can not become that of %s of %s", ErrForeign, m.Node, m.Fingerprint, next.Node, next.Fingerprint)
	}
	return nil
}

// replaceFile writes a file so that after a crash it has either its old or its new content.
func replaceFile(dir, name string, data []byte) error {
	path := filepath.Join(dir, name)
	temporary, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = temporary.Write(data)
	if err == nil {
		err = temporary.Sync()
	}
	if err := errors.Join(err, temporary.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(dir)
}

// Close gives up the lock. It may be called more than once.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.closed {
		return nil
	}
	d.mu.closed = true
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock data directory: %w", err)
	}
	return nil
}

const markerFormat = 1

type markerJSON struct {
	Format int `json:"format"`
	Marker
	// Checksum is the CRC-32C of the file's content as it is written without this field. Without it a flipped bit in a
	// name would look like the directory of another node or cluster.
	Checksum string `json:"checksum,omitempty"`
}

func (v markerJSON) checksum() (string, error) {
	v.Checksum = ""
	data, err := json.MarshalIndent(v, "", "  ")
	return fmt.Sprintf("%08x", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))), err
}

func (m Marker) encode() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	v := markerJSON{Format: markerFormat, Marker: m}
	var err error
	if v.Checksum, err = v.checksum(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(v, "", "  ")
	return append(data, '\n'), err
}

// DecodeMarker reads the content of a marker file.
func DecodeMarker(data []byte) (Marker, error) {
	var v markerJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return Marker{}, fmt.Errorf("%w: %w", ErrMarker, err)
	}
	if v.Format != markerFormat {
		return Marker{}, fmt.Errorf("%w: format %d is not known to this version of the server", ErrMarker, v.Format)
	}
	if sum, err := v.checksum(); err != nil || sum != v.Checksum {
		return Marker{}, fmt.Errorf("%w: its checksum is %s, but it says %q", ErrMarker, sum, v.Checksum)
	}
	if err := v.validate(); err != nil {
		return Marker{}, err
	}
	return v.Marker, nil
}

func (m Marker) validate() error {
	joined := m.Node != 0
	switch {
	case m.Directory == "":
		return fmt.Errorf("%w: it has no identity", ErrMarker)
	case joined != (m.ClusterName != "") || joined != (m.NodeName != "") || joined != (m.Fingerprint != 0):
		return fmt.Errorf("%w: node, node name, cluster and fingerprint do not go together", ErrMarker)
	}
	return nil
}
