"""An order as a list of what was said about it: no table, no flags, everything derived anew."""

TERMINAL = {"canceled": "CANCELED", "replaced": "CANCELED", "expired": "EXPIRED",
            "rejected": "REJECTED"}


class NaiveOrder:
    """One order; the gateway's steps and the venue's words in the order they came."""

    def __init__(self, qty):
        self.qty = qty
        self.log = []               # (word, filled by then, filled by then as the venue says)
        self.executions = {}        # id -> qty
        self.covered = 0            # up to here REST has told
        self.told = 0               # filled as the venue says

    @property
    def cum(self):
        return sum(self.executions.values())

    @property
    def end(self):
        """The word that ended it, before any fill completed it; None while it lives.

        That is the first such word, from when on nothing is missing that the venue speaks of.
        """
        word = None
        for kind, cum, told in self.log:
            if kind == "dropped" or (kind in TERMINAL and word is None):
                word = kind
            if word and cum >= min(told, self.qty):
                return word
        return None

    @property
    def state(self):
        if self.cum == self.qty:
            return "FILLED"
        if self.end:
            return TERMINAL.get(self.end, "DROPPED")
        state, acked, cancelling, filled = "CREATED", False, False, False
        for kind, _, _ in self.log:
            unknown = state == "UNKNOWN"
            if kind in TERMINAL or kind == "told":
                continue            # its end waits, and changes nothing yet
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

    def _note(self, word):
        self.told = max(self.told, self.cum)
        self.log.append((word, self.cum, self.told))

    def reconciled(self, known, qty):
        """An execution of which REST told to somebody who thought *known* was filled."""
        if known != self.cum:
            return []
        kinds = self.fill(("rest", known, qty), qty, 0, known + qty)
        if kinds:
            self.covered = self.cum
        return kinds

    def fill(self, name, qty, cum, told=0):
        """The kinds to publish: of the execution, and of the end that waited for it."""
        if 0 < cum <= self.covered:
            return []
        if name in self.executions or qty > self.qty - self.cum:
            return []
        ended = self.ended
        self.executions[name] = qty
        self.told = max(self.told, cum, told)
        self._note("fill")
        if self.cum == self.qty:
            return ["fill"]
        return ["partial_fill"] + ([self.end] if self.ended and not ended else [])

    def say(self, kind, told=0):
        """Any other step; the kinds to be published."""
        said = [k for k, _, _ in self.log]
        cancels = [k for k in said if k in ("cancel_sent", "cancel_rejected")]
        cancelling = bool(cancels) and cancels[-1] == "cancel_sent"
        effect = not self.ended and {
            "sent": self.state == "CREATED",
            "dropped": self.state == "CREATED" and not self.told,
            "cancel_sent": self.state != "CREATED",
            "unknown": self.state in ("CREATED", "SENT", "PENDING_CANCEL"),
            "acked": not ({"acked", "fill"} & set(said)) or self.state == "UNKNOWN",
            "cancel_rejected": cancelling,
        }.get(kind, not set(TERMINAL) & set(said))
        self.told = max(self.told, told)
        self._note(kind if effect else "told")
        return [kind] if effect and (kind not in TERMINAL or self.ended) else []
