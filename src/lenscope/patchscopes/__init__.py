"""patchscopes"""
