"""Average-cost books in Decimal, a hundred digits: every fill is kept, cash is summed anew."""
from decimal import Decimal, localcontext

PRECISION = 100


class NaiveLedger:
    """Prices and quantities are Decimal; one instrument per key."""

    def __init__(self):
        self.fills = []                         # (instrument, signed qty, price)
        self.qty, self.average, self.realised, self.marks = {}, {}, {}, {}

    def fill(self, instrument, signed, price):
        with localcontext() as context:
            context.prec = PRECISION
            self.fills.append((instrument, signed, price))
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

    def unrealised(self, instrument):
        with localcontext() as context:
            context.prec = PRECISION
            return ((self.marks.get(instrument, Decimal(0)) - self.average.get(
                instrument, Decimal(0))) * self.qty.get(instrument, Decimal(0)))

    @property
    def cash(self):
        with localcontext() as context:
            context.prec = PRECISION
            return -sum((price * signed for _, signed, price in self.fills), Decimal(0))

    @property
    def worth(self):
        """What everything held would bring at the marks."""
        with localcontext() as context:
            context.prec = PRECISION
            return sum((self.marks[i] * signed for i, signed, _ in self.fills), Decimal(0))
