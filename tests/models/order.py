"""An order as a list of what was said about it: no table, no flags, everything derived anew."""

TERMINAL = {"canceled": "CANCELED", "replaced": "CANCELED", "expired": "EXPIRED",
            "rejected": "REJECTED"}


class NaiveOrder:
    """One order; the gateway's steps and the venue's words in the order they came."""

    def __init__(self, qty):
        self.qty = qty
        self.log = []               # steps with an effect: (kind, ...)
        self.executions = {}        # id -> qty
        self.covered = 0            # up to here REST has told

    @property
    def cum(self):
        return sum(self.executions.values())

    @property
    def state(self):
        if self.cum == self.qty:
            return "FILLED"
        state, acked, cancelling, filled = "CREATED", False, False, False
        for kind, *_ in self.log:
            if kind in TERMINAL:
                return TERMINAL[kind]
            if kind == "dropped":
                return "DROPPED"
            unknown = state == "UNKNOWN"
            if kind == "sent":
                state = "SENT"
                continue
            if kind == "unknown":
                state = "UNKNOWN"
                continue
            if kind == "cancel_sent":
                cancelling = True
            if kind == "cancel_rejected":
                cancelling = False
            if kind == "fill":
                filled = acked = True
            if kind == "acked":
                acked = True
            if kind in ("cancel_sent", "cancel_rejected") and unknown:
                continue            # only an answer about the order itself ends UNKNOWN
            if cancelling:
                state = "PENDING_CANCEL"
            else:
                state = "PARTIAL" if filled else "OPEN" if acked else "SENT"
        return state

    @property
    def ended(self):
        return self.state in ("FILLED", "CANCELED", "EXPIRED", "REJECTED", "DROPPED")

    def reconciled(self, known, qty):
        """An execution of which REST told to somebody who thought *known* was filled."""
        if known != self.cum:
            return None
        kind = self.fill(("rest", known, qty), qty, 0)
        if kind is not None:
            self.covered = self.cum
        return kind

    def fill(self, name, qty, cum):
        """The kind to publish, or None."""
        if 0 < cum <= self.covered:
            return None
        if name in self.executions or qty > self.qty - self.cum:
            return None
        self.executions[name] = qty
        self.log.append(("fill", qty))
        return "FILL" if self.cum == self.qty else "PARTIAL_FILL"

    def say(self, kind):
        """Any other step; whether it is to be published."""
        said = [k for k, *_ in self.log]
        cancels = [k for k in said if k in ("cancel_sent", "cancel_rejected")]
        cancelling = bool(cancels) and cancels[-1] == "cancel_sent"
        effect = not self.ended and {
            "sent": self.state == "CREATED",
            "dropped": self.state == "CREATED",
            "cancel_sent": self.state != "CREATED",
            "unknown": self.state in ("CREATED", "SENT", "PENDING_CANCEL"),
            "acked": not ({"acked", "fill"} & set(said)) or self.state == "UNKNOWN",
            "cancel_rejected": cancelling,
        }.get(kind, True)
        if effect:
            self.log.append((kind,))
        return effect
