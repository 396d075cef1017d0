package protocol

import "strings"

// Frame types. Bits 10 to 15 tell the class: none set is control, up to 0x7FFF a command, above a
// notification; 0xFC00 and up is reserved.
const (
	TypeStart                   uint16 = 0x0000
	TypeSuspension              uint16 = 0x0001
	TypeError                   uint16 = 0x0002
	TypeEnd                     uint16 = 0x0003
	TypeCommandAck              uint16 = 0x0004
	TypeProposeRunCompletion    uint16 = 0x0005
	TypeAwaitingOn              uint16 = 0x0006 // V7
	TypeProposeRunCompletionAck uint16 = 0x0007 // V7

	TypeInput               uint16 = 0x0400
	TypeOutput              uint16 = 0x0401
	TypeGetLazyState        uint16 = 0x0402
	TypeSetState            uint16 = 0x0403
	TypeClearState          uint16 = 0x0404
	TypeClearAllState       uint16 = 0x0405
	TypeGetLazyStateKeys    uint16 = 0x0406
	TypeGetEagerState       uint16 = 0x0407
	TypeGetEagerStateKeys   uint16 = 0x0408
	TypeGetPromise          uint16 = 0x0409
	TypePeekPromise         uint16 = 0x040A
	TypeCompletePromise     uint16 = 0x040B
	TypeSleep               uint16 = 0x040C
	TypeCall                uint16 = 0x040D
	TypeOneWayCall          uint16 = 0x040E
	TypeSendSignal          uint16 = 0x0410
	TypeRun                 uint16 = 0x0411
	TypeAttachInvocation    uint16 = 0x0412
	TypeGetInvocationOutput uint16 = 0x0413
	TypeCompleteAwakeable   uint16 = 0x0414

	TypeGetLazyStateCompletion        uint16 = 0x8002
	TypeGetLazyStateKeysCompletion    uint16 = 0x8006
	TypeGetPromiseCompletion          uint16 = 0x8009
	TypePeekPromiseCompletion         uint16 = 0x800A
	TypeCompletePromiseCompletion     uint16 = 0x800B
	TypeSleepCompletion               uint16 = 0x800C
	TypeCallCompletion                uint16 = 0x800D
	TypeCallInvocationIDCompletion    uint16 = 0x800E
	TypeRunCompletion                 uint16 = 0x8011
	TypeAttachInvocationCompletion    uint16 = 0x8012
	TypeGetInvocationOutputCompletion uint16 = 0x8013
	TypeSignal                        uint16 = 0xFBFF
)

// SignalCancel is the index of the built-in signal that asks an invocation to cancel itself. 2 to 15 are
// reserved; the SDKs number their awakeables from 17.
const SignalCancel uint32 = 1

// Codes of an Error message that mean something of their own to the server.
const (
	CodeJournalMismatch   uint32 = 570
	CodeProtocolViolation uint32 = 571
)

// IsCommand reports whether t lies in the range of commands.
func IsCommand(t uint16) bool { return 0x0400 <= t && t <= 0x7FFF }

// IsNotification reports whether t lies in the range of notifications.
func IsNotification(t uint16) bool { return 0x8000 <= t && t <= 0xFBFF }

// Known reports whether t is a type of the table above.
func Known(t uint16) bool { return shortName(t) != "" }

// Name is the type's message name, e.g. "SetStateCommandMessage", or the number of an unknown type.
func Name(t uint16) string {
	s := shortName(t)
	switch {
	case s == "":
		return "0x" + hex4(t)
	case t == TypeSignal:
		return "SignalNotificationMessage"
	case IsNotification(t):
		return s + "NotificationMessage"
	case IsCommand(t):
		return s + "CommandMessage"
	}
	return s + "Message"
}

// Label is the type as introspection shows it, e.g. "Command: SetState", or "Notification: Sleep" for the
// completion of a sleep; "" for an unknown one.
func Label(t uint16) string {
	s := shortName(t)
	switch {
	case s == "":
		return ""
	case IsNotification(t):
		return "Notification: " + strings.TrimSuffix(s, "Completion")
	case IsCommand(t):
		return "Command: " + s
	}
	return s
}

func hex4(t uint16) string {
	const digits = "0123456789ABCDEF"
	return string([]byte{digits[t>>12], digits[t>>8&15], digits[t>>4&15], digits[t&15]})
}

func shortName(t uint16) string {
	switch t {
	case TypeStart:
		return "Start"
	case TypeSuspension:
		return "Suspension"
	case TypeError:
		return "Error"
	case TypeEnd:
		return "End"
	case TypeCommandAck:
		return "CommandAck"
	case TypeProposeRunCompletion:
		return "ProposeRunCompletion"
	case TypeAwaitingOn:
		return "AwaitingOn"
	case TypeProposeRunCompletionAck:
		return "ProposeRunCompletionAck"
	case TypeInput:
		return "Input"
	case TypeOutput:
		return "Output"
	case TypeGetLazyState:
		return "GetLazyState"
	case TypeSetState:
		return "SetState"
	case TypeClearState:
		return "ClearState"
	case TypeClearAllState:
		return "ClearAllState"
	case TypeGetLazyStateKeys:
		return "GetLazyStateKeys"
	case TypeGetEagerState:
		return "GetEagerState"
	case TypeGetEagerStateKeys:
		return "GetEagerStateKeys"
	case TypeGetPromise:
		return "GetPromise"
	case TypePeekPromise:
		return "PeekPromise"
	case TypeCompletePromise:
		return "CompletePromise"
	case TypeSleep:
		return "Sleep"
	case TypeCall:
		return "Call"
	case TypeOneWayCall:
		return "OneWayCall"
	case TypeSendSignal:
		return "SendSignal"
	case TypeRun:
		return "Run"
	case TypeAttachInvocation:
		return "AttachInvocation"
	case TypeGetInvocationOutput:
		return "GetInvocationOutput"
	case TypeCompleteAwakeable:
		return "CompleteAwakeable"
	case TypeGetLazyStateCompletion:
		return "GetLazyStateCompletion"
	case TypeGetLazyStateKeysCompletion:
		return "GetLazyStateKeysCompletion"
	case TypeGetPromiseCompletion:
		return "GetPromiseCompletion"
	case TypePeekPromiseCompletion:
		return "PeekPromiseCompletion"
	case TypeCompletePromiseCompletion:
		return "CompletePromiseCompletion"
	case TypeSleepCompletion:
		return "SleepCompletion"
	case TypeCallCompletion:
		return "CallCompletion"
	case TypeCallInvocationIDCompletion:
		return "CallInvocationIdCompletion"
	case TypeRunCompletion:
		return "RunCompletion"
	case TypeAttachInvocationCompletion:
		return "AttachInvocationCompletion"
	case TypeGetInvocationOutputCompletion:
		return "GetInvocationOutputCompletion"
	case TypeSignal:
		return "Signal"
	}
	return ""
}

// CompletionType is the notification that answers the completion id of a command of type t; 0 when t has
// none. The second completion of a call, the callee's id, is always TypeCallInvocationIDCompletion.
func CompletionType(t uint16) uint16 {
	switch t {
	case TypeGetLazyState, TypeGetLazyStateKeys, TypeGetPromise, TypePeekPromise, TypeCompletePromise,
		TypeSleep, TypeCall, TypeRun, TypeAttachInvocation, TypeGetInvocationOutput:
		return t + 0x7C00
	}
	return 0
}
