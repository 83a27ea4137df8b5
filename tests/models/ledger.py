"""Average-cost books in Decimal, a hundred digits: every fill is kept, cash is summed anew."""
from decimal import ROUND_CEILING, Decimal, localcontext

PRECISION = 100


class NaiveLedger:
    """Prices, quantities and fees are Decimal, rates shares of 1; one instrument per key."""

    def __init__(self, equity=0, fees=None):
        self.fills = []                         # (instrument, signed qty, price)
        self.qty, self.average, self.realised, self.marks = {}, {}, {}, {}
        self.opening, self.fees, self.paid = Decimal(equity), fees or {}, []
        self.equities = [self.opening]          # after everything that happened
        self.then = (self.opening, Decimal(0), Decimal(0))      # when the day began

    def fee(self, signed, price, first):
        """What a fill is charged, to the last 1e-9 against us."""
        f, zero = self.fees, Decimal(0)
        total = abs(signed) * f.get("per_share", zero) + abs(signed) * price * f.get("rate", zero)
        if signed < 0:
            total += abs(signed) * f.get("sell_per_share", zero)
            total += abs(signed) * price * f.get("sell_rate", zero)
        total = total.quantize(Decimal("1e-9"), ROUND_CEILING)
        return total + (f.get("per_order", zero) if first else 0)

    def fill(self, instrument, signed, price, first=False):
        with localcontext() as context:
            context.prec = PRECISION
            self.fills.append((instrument, signed, price))
            self.paid.append((instrument, self.fee(signed, price, first)))
            self.marks.setdefault(instrument, price)
            qty = self.qty.get(instrument, Decimal(0))
            average = self.average.get(instrument, Decimal(0))
            gain = Decimal(0)
            if qty == 0 or (qty > 0) == (signed > 0):
                average = (average * abs(qty) + price * abs(signed)) / (abs(qty) + abs(signed))
            else:
                closed = min(abs(qty), abs(signed))
                gain = (price - average) * closed * (1 if qty > 0 else -1)
                if abs(signed) > abs(qty):
                    average = price
            self.qty[instrument] = qty + signed
            self.average[instrument] = average if qty + signed else Decimal(0)
            self.realised[instrument] = self.realised.get(instrument, Decimal(0)) + gain
        self.equities.append(self.equity)

    def mark(self, instrument, price):
        self.marks[instrument] = price
        self.equities.append(self.equity)

    def roll(self):
        self.then = (self.equity, sum(self.realised.values(), Decimal(0)), self.charged())

    def charged(self, instrument=None):
        return sum((fee for i, fee in self.paid if instrument in (None, i)), Decimal(0))

    def unrealised(self, instrument):
        with localcontext() as context:
            context.prec = PRECISION
            return ((self.marks.get(instrument, Decimal(0)) - self.average.get(
                instrument, Decimal(0))) * self.qty.get(instrument, Decimal(0)))

    @property
    def cash(self):
        with localcontext() as context:
            context.prec = PRECISION
            return -sum((price * signed for _, signed, price in self.fills),
                        Decimal(0)) - self.charged()

    @property
    def worth(self):
        """What everything held would bring at the marks."""
        with localcontext() as context:
            context.prec = PRECISION
            return sum((self.marks[i] * signed for i, signed, _ in self.fills), Decimal(0))

    @property
    def equity(self):
        return self.opening + self.cash + self.worth

    @property
    def deepest(self):
        """The largest fall from a highest equity."""
        peak, out = self.opening, Decimal(0)
        for equity in self.equities:
            peak = max(peak, equity)
            out = max(out, peak - equity)
        return out
