package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"perdure/control/ident"
)

// Doctor says what invocations wait for. It is an addition of this server to the published interface.
type Doctor interface {
	// Checkup examines all invocations of the partitions that this node leads. When something looks wrong it takes some
	// seconds longer to see whether it stays so.
	Checkup(ctx context.Context) (*Checkup, error)
	// Diagnose examines one invocation; nil if there is none.
	Diagnose(ctx context.Context, id ident.InvocationID) (*Diagnosis, error)
}

// Checkup is what GET /perdure/doctor shows.
type Checkup struct {
	// Healthy says that there are no problems, and that all partitions could be examined.
	Healthy bool `json:"healthy"`
	// Invocations counts by status, WaitsFor those that have not ended by what makes them go on.
	Invocations map[string]int `json:"invocations"`
	WaitsFor    map[string]int `json:"waits_for"`
	// Problems are the first of the invocations and objects that nothing makes go on, ProblemsTotal how many there are.
	Problems      []Diagnosis `json:"problems"`
	ProblemsTotal int         `json:"problems_total"`
	// Partitions were examined; Unexamined says of the others why not.
	Partitions int               `json:"partitions"`
	Unexamined map[uint16]string `json:"unexamined,omitempty"`
	// Notes are what an operator should know, and is no problem of invocations.
	Notes  []string `json:"notes,omitempty"`
	TookMs int64    `json:"took_ms"`
}

// Diagnosis says what an invocation waits for.
type Diagnosis struct {
	// ID is empty for a problem of an object whose holder has no valid id.
	ID     string     `json:"id,omitempty"`
	Target string     `json:"target"`
	Status string     `json:"status,omitempty"`
	Since  *time.Time `json:"since,omitempty"`
	// Waits are what can make the invocation go on; Needs says how they combine if there are several.
	Waits []Wait `json:"waits,omitempty"`
	Needs string `json:"needs,omitempty"`
	// Problem says why nothing will make it go on; empty if all is well.
	Problem string `json:"problem,omitempty"`
	// Chain are the invocations that it waits for, one for the other.
	Chain []Link `json:"chain,omitempty"`
}

// Wait is one thing that an invocation waits for.
type Wait struct {
	Reason     string     `json:"reason"`
	Text       string     `json:"text"`
	Invocation string     `json:"invocation,omitempty"`
	Due        *time.Time `json:"due,omitempty"`
}

// Link is an invocation that another one waits for, and what it waits for itself.
type Link struct {
	ID     string `json:"id"`
	Target string `json:"target"`
	Status string `json:"status"`
	Text   string `json:"text,omitempty"`
}

// maxCheckups is how many checkups may be under way: each reads all invocations.
const maxCheckups = 2

func (c *call) checkup() error {
	if c.a.deps.Doctor == nil {
		return notSupported("the doctor", "")
	}
	defer c.a.checkups.Add(-1)
	if c.a.checkups.Add(1) > maxCheckups {
		c.w.Header().Set("Retry-After", "5")
		return errCheckups
	}
	ctx, cancel := c.ctx()
	defer cancel()
	r, err := c.a.deps.Doctor.Checkup(ctx)
	if err != nil {
		return routingError(err)
	}
	c.a.respond(c.w, c.r, http.StatusOK, r)
	return nil
}

func (c *call) diagnose() error {
	if c.a.deps.Doctor == nil {
		return notSupported("the doctor", "")
	}
	id, err := c.invocationID()
	if err != nil {
		return err
	}
	ctx, cancel := c.ctx()
	defer cancel()
	d, err := c.a.deps.Doctor.Diagnose(ctx, id)
	switch {
	case err != nil:
		return routingError(err)
	case d == nil:
		status, text := outcomeText("doctor", NotFound)
		return &apiError{status: status, message: fmt.Sprintf(text, id)}
	}
	c.a.respond(c.w, c.r, http.StatusOK, d)
	return nil
}
