package schema

import (
	"encoding/json"
	"fmt"

	"perdure/control/ident"
)

// The stored form is JSON: one value per deployment and one index. Every change writes the index together with the
// deployments that it touches, so the version of the index is the version of the schema, and the index says which versions of the
// others belong together.

// formatVersion of the stored values. A reader refuses newer ones: it would lose what it does not know when it writes back.
const formatVersion = 1

type storedDeployment struct {
	Format int `json:"format"`
	*Deployment
}

// EncodeDeployment is the stored form of d.
func EncodeDeployment(d *Deployment) ([]byte, error) {
	b, err := json.Marshal(storedDeployment{formatVersion, d})
	if err != nil {
		return nil, fmt.Errorf("encode deployment %s: %w", d.ID, err)
	}
	return b, nil
}

// DecodeDeployment reads the stored form of the deployment with the given id.
func DecodeDeployment(id ident.DeploymentID, b []byte) (*Deployment, error) {
	s := storedDeployment{Deployment: new(Deployment)}
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("decode deployment %s: %w", id, err)
	}
	if err := checkFormat(s.Format); err != nil {
		return nil, fmt.Errorf("decode deployment %s: %w", id, err)
	}
	if s.Deployment == nil || (s.Address.HTTP == nil) == (s.Address.Lambda == nil) {
		return nil, fmt.Errorf("decode deployment %s: it must have one address", id)
	}
	s.ID = id
	return s.Deployment, nil
}

func checkFormat(v int) error {
	if v < 1 || v > formatVersion {
		return fmt.Errorf("format version is %d, this server reads 1 to %d: use the version that wrote it, or a newer one", v, formatVersion)
	}
	return nil
}

// Index is the stored list of deployments with the metadata versions of their values. A set of values is a snapshot when it
// has exactly these versions.
type Index struct {
	Format      int               `json:"format"`
	Deployments map[string]uint64 `json:"deployments"` // by printed id
}

// EncodeIndex is the stored form of an index.
func EncodeIndex(deployments map[string]uint64) ([]byte, error) {
	b, err := json.Marshal(Index{formatVersion, deployments}) // sorts the keys
	if err != nil {
		return nil, fmt.Errorf("encode schema index: %w", err)
	}
	return b, nil
}

// DecodeIndex reads the stored form of an index.
func DecodeIndex(b []byte) (Index, error) {
	var x Index
	if err := json.Unmarshal(b, &x); err != nil {
		return x, fmt.Errorf("decode schema index: %w", err)
	}
	if err := checkFormat(x.Format); err != nil {
		return x, fmt.Errorf("decode schema index: %w", err)
	}
	return x, nil
}
