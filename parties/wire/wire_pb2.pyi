from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Heartbeat(_message.Message):
    __slots__ = ("received",)
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    received: int
    def __init__(self, received: _Optional[int] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("session", "epoch", "received", "proof")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    received: int
    proof: bytes
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., received: _Optional[int] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Resumed(_message.Message):
    __slots__ = ("received",)
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    received: int
    def __init__(self, received: _Optional[int] = ...) -> None: ...

class LineOffer(_message.Message):
    __slots__ = ("port", "local")
    PORT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    port: int
    local: str
    def __init__(self, port: _Optional[int] = ..., local: _Optional[str] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "peer", "step", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    peer: str
    step: str
    reason: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., peer: _Optional[str] = ..., step: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Kept(_message.Message):
    __slots__ = ("step", "rows")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    step: int
    rows: int
    def __init__(self, step: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("reach",)
    REACH_FIELD_NUMBER: _ClassVar[int]
    reach: bool
    def __init__(self, reach: _Optional[bool] = ...) -> None: ...

class HeldPrefix(_message.Message):
    __slots__ = ("prefix", "name", "tokens", "suite", "fraction_bits", "options", "session", "text", "scores")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_BITS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    name: str
    tokens: int
    suite: str
    fraction_bits: int
    options: str
    session: str
    text: bytes
    scores: str
    def __init__(self, prefix: _Optional[str] = ..., name: _Optional[str] = ..., tokens: _Optional[int] = ..., suite: _Optional[str] = ..., fraction_bits: _Optional[int] = ..., options: _Optional[str] = ..., session: _Optional[str] = ..., text: _Optional[bytes] = ..., scores: _Optional[str] = ...) -> None: ...

class HeldModel(_message.Message):
    __slots__ = ("model", "name", "architecture", "owner", "parties", "ranges", "prefixes", "tokenizer")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    architecture: str
    owner: str
    parties: _containers.RepeatedScalarFieldContainer[str]
    ranges: str
    prefixes: _containers.RepeatedCompositeFieldContainer[HeldPrefix]
    tokenizer: str
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., architecture: _Optional[str] = ..., owner: _Optional[str] = ..., parties: _Optional[_Iterable[str]] = ..., ranges: _Optional[str] = ..., prefixes: _Optional[_Iterable[_Union[HeldPrefix, _Mapping]]] = ..., tokenizer: _Optional[str] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("name", "role", "version", "protocol", "models", "settings", "missing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    version: str
    protocol: int
    models: _containers.RepeatedCompositeFieldContainer[HeldModel]
    settings: str
    missing: _containers.RepeatedCompositeFieldContainer[MissingPeer]
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., version: _Optional[str] = ..., protocol: _Optional[int] = ..., models: _Optional[_Iterable[_Union[HeldModel, _Mapping]]] = ..., settings: _Optional[str] = ..., missing: _Optional[_Iterable[_Union[MissingPeer, _Mapping]]] = ...) -> None: ...

class MissingPeer(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("ping", "payload", "back")
    PING_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    BACK_FIELD_NUMBER: _ClassVar[int]
    ping: int
    payload: bytes
    back: int
    def __init__(self, ping: _Optional[int] = ..., payload: _Optional[bytes] = ..., back: _Optional[int] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("clock", "received", "payload")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    clock: float
    received: int
    payload: bytes
    def __init__(self, clock: _Optional[float] = ..., received: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "manifest", "text")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    session: str
    manifest: bytes
    text: bytes
    def __init__(self, session: _Optional[str] = ..., manifest: _Optional[bytes] = ..., text: _Optional[bytes] = ...) -> None: ...

class ShareHeader(_message.Message):
    __slots__ = ("name", "step", "shape", "bits", "seed", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    bits: int
    seed: bytes
    size: int
    def __init__(self, name: _Optional[str] = ..., step: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., bits: _Optional[int] = ..., seed: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("open", "share", "chunk", "finish", "heartbeat", "failure", "kept", "resume", "end", "number", "resume_secret")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESUME_SECRET_FIELD_NUMBER: _ClassVar[int]
    open: Open
    share: ShareHeader
    chunk: Chunk
    finish: Finish
    heartbeat: Heartbeat
    failure: Failure
    kept: Kept
    resume: Resume
    end: End
    number: int
    resume_secret: bytes
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., share: _Optional[_Union[ShareHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., kept: _Optional[_Union[Kept, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., number: _Optional[int] = ..., resume_secret: _Optional[bytes] = ...) -> None: ...

class OutputHeader(_message.Message):
    __slots__ = ("step", "shape", "bits", "fraction_bits", "size", "flags", "dropped")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_BITS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    step: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    bits: int
    fraction_bits: int
    size: int
    flags: bytes
    dropped: bytes
    def __init__(self, step: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., bits: _Optional[int] = ..., fraction_bits: _Optional[int] = ..., size: _Optional[int] = ..., flags: _Optional[bytes] = ..., dropped: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "done", "total", "spent")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: int
    total: int
    spent: Spent
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., spent: _Optional[_Union[Spent, _Mapping]] = ...) -> None: ...

class Spent(_message.Message):
    __slots__ = ("rounds", "bytes_sent", "bytes_received", "offline_bytes")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    OFFLINE_BYTES_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    bytes_sent: int
    bytes_received: int
    offline_bytes: int
    def __init__(self, rounds: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., offline_bytes: _Optional[int] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("steps", "seconds", "ledger_size")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_SIZE_FIELD_NUMBER: _ClassVar[int]
    steps: int
    seconds: float
    ledger_size: int
    def __init__(self, steps: _Optional[int] = ..., seconds: _Optional[float] = ..., ledger_size: _Optional[int] = ...) -> None: ...

class PartyMessage(_message.Message):
    __slots__ = ("output", "chunk", "progress", "summary", "heartbeat", "resumed", "end", "number")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    output: OutputHeader
    chunk: Chunk
    progress: Progress
    summary: Summary
    heartbeat: Heartbeat
    resumed: Resumed
    end: End
    number: int
    def __init__(self, output: _Optional[_Union[OutputHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("session", "name", "manifest", "tape_files", "tapes", "client", "storing", "group", "member", "rows")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    TAPE_FILES_FIELD_NUMBER: _ClassVar[int]
    TAPES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STORING_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    session: str
    name: str
    manifest: bytes
    tape_files: bool
    tapes: _containers.RepeatedScalarFieldContainer[str]
    client: str
    storing: str
    group: str
    member: int
    rows: str
    def __init__(self, session: _Optional[str] = ..., name: _Optional[str] = ..., manifest: _Optional[bytes] = ..., tape_files: _Optional[bool] = ..., tapes: _Optional[_Iterable[str]] = ..., client: _Optional[str] = ..., storing: _Optional[str] = ..., group: _Optional[str] = ..., member: _Optional[int] = ..., rows: _Optional[str] = ...) -> None: ...

class Steps(_message.Message):
    __slots__ = ("group",)
    GROUP_FIELD_NUMBER: _ClassVar[int]
    group: str
    def __init__(self, group: _Optional[str] = ...) -> None: ...

class TapeChoice(_message.Message):
    __slots__ = ("tape", "digest")
    TAPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    tape: str
    digest: bytes
    def __init__(self, tape: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class TapeTaken(_message.Message):
    __slots__ = ("held",)
    HELD_FIELD_NUMBER: _ClassVar[int]
    held: bool
    def __init__(self, held: _Optional[bool] = ...) -> None: ...

class TapeGo(_message.Message):
    __slots__ = ("fresh",)
    FRESH_FIELD_NUMBER: _ClassVar[int]
    fresh: bool
    def __init__(self, fresh: _Optional[bool] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence", "size", "payload")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    size: int
    payload: bytes
    def __init__(self, sequence: _Optional[int] = ..., size: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class PeerMessage(_message.Message):
    __slots__ = ("frame", "hello", "heartbeat", "finish", "failure", "choice", "taken", "go", "ready", "steps", "resumed", "resume", "end", "offer", "number", "resume_secret")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    GO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESUME_SECRET_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    hello: Hello
    heartbeat: Heartbeat
    finish: Finish
    failure: Failure
    choice: TapeChoice
    taken: TapeTaken
    go: TapeGo
    ready: Ready
    steps: Steps
    resumed: Resumed
    resume: Resume
    end: End
    offer: LineOffer
    number: int
    resume_secret: bytes
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., choice: _Optional[_Union[TapeChoice, _Mapping]] = ..., taken: _Optional[_Union[TapeTaken, _Mapping]] = ..., go: _Optional[_Union[TapeGo, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., steps: _Optional[_Union[Steps, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., offer: _Optional[_Union[LineOffer, _Mapping]] = ..., number: _Optional[int] = ..., resume_secret: _Optional[bytes] = ...) -> None: ...

class TapeOpen(_message.Message):
    __slots__ = ("session", "manifest", "architecture", "loads", "client", "rows_loads")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    ROWS_LOADS_FIELD_NUMBER: _ClassVar[int]
    session: str
    manifest: bytes
    architecture: str
    loads: _containers.RepeatedScalarFieldContainer[str]
    client: str
    rows_loads: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session: _Optional[str] = ..., manifest: _Optional[bytes] = ..., architecture: _Optional[str] = ..., loads: _Optional[_Iterable[str]] = ..., client: _Optional[str] = ..., rows_loads: _Optional[_Iterable[str]] = ...) -> None: ...

class TapeRequest(_message.Message):
    __slots__ = ("open", "heartbeat", "finish", "failure", "kept", "resume", "end", "number", "resume_secret")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESUME_SECRET_FIELD_NUMBER: _ClassVar[int]
    open: TapeOpen
    heartbeat: Heartbeat
    finish: Finish
    failure: Failure
    kept: Kept
    resume: Resume
    end: End
    number: int
    resume_secret: bytes
    def __init__(self, open: _Optional[_Union[TapeOpen, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., kept: _Optional[_Union[Kept, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., number: _Optional[int] = ..., resume_secret: _Optional[bytes] = ...) -> None: ...

class TapeStart(_message.Message):
    __slots__ = ("seed", "load", "fresh", "rows_load", "rows_fresh")
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    ROWS_LOAD_FIELD_NUMBER: _ClassVar[int]
    ROWS_FRESH_FIELD_NUMBER: _ClassVar[int]
    seed: bytes
    load: str
    fresh: bool
    rows_load: str
    rows_fresh: bool
    def __init__(self, seed: _Optional[bytes] = ..., load: _Optional[str] = ..., fresh: _Optional[bool] = ..., rows_load: _Optional[str] = ..., rows_fresh: _Optional[bool] = ...) -> None: ...

class TapeMessage(_message.Message):
    __slots__ = ("start", "chunk", "heartbeat", "offer", "resumed", "end", "number")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    start: TapeStart
    chunk: Chunk
    heartbeat: Heartbeat
    offer: LineOffer
    resumed: Resumed
    end: End
    number: int
    def __init__(self, start: _Optional[_Union[TapeStart, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., offer: _Optional[_Union[LineOffer, _Mapping]] = ..., resumed: _Optional[_Union[Resumed, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class ModelHeader(_message.Message):
    __slots__ = ("model", "name", "architecture", "parties", "fraction_bits", "seed", "version", "ranges", "tokenizer")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    FRACTION_BITS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    architecture: str
    parties: _containers.RepeatedScalarFieldContainer[str]
    fraction_bits: int
    seed: bytes
    version: str
    ranges: str
    tokenizer: str
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., architecture: _Optional[str] = ..., parties: _Optional[_Iterable[str]] = ..., fraction_bits: _Optional[int] = ..., seed: _Optional[bytes] = ..., version: _Optional[str] = ..., ranges: _Optional[str] = ..., tokenizer: _Optional[str] = ...) -> None: ...

class WeightHeader(_message.Message):
    __slots__ = ("name", "shape", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    size: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., size: _Optional[int] = ...) -> None: ...

class ModelMessage(_message.Message):
    __slots__ = ("header", "weight", "chunk", "heartbeat", "failure")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    header: ModelHeader
    weight: WeightHeader
    chunk: Chunk
    heartbeat: Heartbeat
    failure: Failure
    def __init__(self, header: _Optional[_Union[ModelHeader, _Mapping]] = ..., weight: _Optional[_Union[WeightHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class ModelReceipt(_message.Message):
    __slots__ = ("model", "weights")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    weights: int
    def __init__(self, model: _Optional[str] = ..., weights: _Optional[int] = ...) -> None: ...

class StoreMessage(_message.Message):
    __slots__ = ("receipt", "heartbeat")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    receipt: ModelReceipt
    heartbeat: Heartbeat
    def __init__(self, receipt: _Optional[_Union[ModelReceipt, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("model", "prefix")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    model: str
    prefix: str
    def __init__(self, model: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...

class RemoveReceipt(_message.Message):
    __slots__ = ("model", "prefix")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    model: str
    prefix: str
    def __init__(self, model: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...
