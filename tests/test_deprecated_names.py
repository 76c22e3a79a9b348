"""Old public names still work, with a warning that names the new one."""

import pytest

import radam_fused
from radam_fused import rectification


def test_flat_buffers_is_flat_group():
    with pytest.warns(DeprecationWarning, match="FlatBuffers is deprecated, use FlatGroup"):
        assert radam_fused.FlatBuffers is radam_fused.FlatGroup
    with pytest.raises(AttributeError, match="no attribute 'Flat'"):
        _ = radam_fused.Flat


def test_rho_is_rho_t():
    with pytest.warns(DeprecationWarning, match="rho is deprecated, use rho_t"):
        assert rectification.rho(7, 0.99) == rectification.rho_t(7, 0.99)


def test_rectification_is_r_t():
    with pytest.warns(DeprecationWarning, match="rectification is deprecated, use r_t"):
        found = rectification.rectification(7, 0.99, 4.0, exact=True)
    assert found == rectification.r_t(7, 0.99, 4.0, exact=True) > 0
