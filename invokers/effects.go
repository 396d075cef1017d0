package invokers

import (
	"perdure/control/ident"
	"perdure/invokers/invocationpb"
)

// The constructors here allocate an effect with its parts in one piece: three small objects per effect would
// be most of the garbage of a short invocation.

func pinnedEffect(d ident.DeploymentID, version uint32) *invocationpb.Effect {
	e := &struct {
		effect invocationpb.Effect
		kind   invocationpb.Effect_Pinned
		pinned invocationpb.Effect_PinnedDeployment
		id     ident.DeploymentID
	}{}
	e.id = d
	e.pinned.DeploymentId, e.pinned.ProtocolVersion = e.id[:], version
	e.kind.Pinned = &e.pinned
	e.effect.Kind = &e.kind
	return &e.effect
}

func commandEffect(typ uint16, raw []byte, callee *invocationpb.Effect_Callee) *invocationpb.Effect {
	e := &struct {
		effect  invocationpb.Effect
		kind    invocationpb.Effect_Command_
		command invocationpb.Effect_Command
	}{}
	e.command.Type, e.command.Raw, e.command.Callee = uint32(typ), raw, callee
	e.kind.Command = &e.command
	e.effect.Kind = &e.kind
	return &e.effect
}

func endEffect() *invocationpb.Effect {
	e := &struct {
		effect invocationpb.Effect
		kind   invocationpb.Effect_End_
		end    invocationpb.Effect_End
	}{}
	e.kind.End = &e.end
	e.effect.Kind = &e.kind
	return &e.effect
}

func runEffect(completionID uint32, value []byte, f *invocationpb.Failure) *invocationpb.Effect {
	r := &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: value}}
	if f != nil {
		r.Kind = &invocationpb.Result_Failure{Failure: f}
	}
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Run{Run: &invocationpb.Effect_RunCompletion{CompletionId: completionID, Result: r}}}
}

func suspendedEffect(f *invocationpb.Future) *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Suspended_{Suspended: &invocationpb.Effect_Suspended{Awaiting: f}}}
}

// pausedEffect has the failure that the last attempt ended with; nil for one that was asked to pause and did.
func pausedEffect(last *failure) *invocationpb.Effect {
	paused := &invocationpb.Effect_Paused{}
	if last != nil {
		paused.LastFailure = last.event()
	}
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Paused_{Paused: paused}}
}

func failedEffect(f *failure) *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: f.event()}}
}

func endWithFailure(f *failure) *invocationpb.Effect {
	return &invocationpb.Effect{Kind: &invocationpb.Effect_Failed_{Failed: &invocationpb.Effect_Failed{Failure: f.terminal()}}}
}
